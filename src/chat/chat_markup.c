/* Which marks a model's replies carry, told by what its template writes. */
#include "chat_internal.h"

/* A constant Slice. */
#define TEXT(literal) {"" literal "", sizeof(literal) - 1}
#define OBJECT_NAME "{\"name\": \""
#define OBJECT_ARGUMENTS "\", \"arguments\": "
#define FENCE "```"
/* [{"name": N, "arguments": A}, ...] and what ends it */
#define OBJECT_LIST(end)                                                                           \
    .before_calls = TEXT("["), .before_name = TEXT(OBJECT_NAME),                                   \
    .after_name = TEXT(OBJECT_ARGUMENTS), .after_arguments = TEXT("}"),                            \
    .between_calls = TEXT(", "), .after_calls = TEXT(end)

typedef struct CallFamily {
    const char *signs[2]; /* the template holds all of them; NULL: fewer */
    MarkupCalls calls;
} CallFamily;

/* The first that fits counts. */
static const CallFamily FAMILIES[] = {
    /* Mistral, newer: [TOOL_CALLS]name[ARGS]{...}[TOOL_CALLS]... */
    {{"[TOOL_CALLS]", "[ARGS]"},
     {.triggers = {{TEXT("[TOOL_CALLS]"), false, 0}},
      .stray = TEXT("[ARGS]"),
      .after_name = TEXT("[ARGS]"),
      .between_calls = TEXT("[TOOL_CALLS]")}},
    /* Mistral: one list of objects */
    {{"[TOOL_CALLS]", NULL}, {.triggers = {{TEXT("[TOOL_CALLS]"), false, 0}}, OBJECT_LIST("]")}},
    /* Phi-4-mini */
    {{"<|tool_call|>", "<|/tool_call|>"},
     {.triggers = {{TEXT("<|tool_call|>"), false, 0}},
      .stray = TEXT("<|/tool_call|>"),
      OBJECT_LIST("]<|/tool_call|>")}},
    /* Granite 3 */
    {{"<|tool_call|>", NULL}, {.triggers = {{TEXT("<|tool_call|>"), false, 0}}, OBJECT_LIST("]")}},
    /* Gemma 4, FunctionGemma: their own notation of objects is held to JSON. */
    {{"<|tool_call>", "<tool_call|>"},
     {.triggers = {{TEXT("<|tool_call>"), false, 0}},
      .stray = TEXT("<tool_call|>"),
      .before_name = TEXT("call:"),
      .after_arguments = TEXT("<tool_call|>"),
      .between_calls = TEXT("<|tool_call>")}},
    {{"<start_function_call>", "<end_function_call>"},
     {.triggers = {{TEXT("<start_function_call>"), false, 0}},
      .stray = TEXT("<end_function_call>"),
      .before_name = TEXT("call:"),
      .after_arguments = TEXT("<end_function_call>"),
      .between_calls = TEXT("<start_function_call>")}},
    /* DeepSeek V3 and R1 */
    {{"<｜tool▁calls▁begin｜>", FENCE "json"},
     {.triggers = {{TEXT("<｜tool▁calls▁begin｜>"), false, 0}},
      .stray = TEXT("<｜tool▁calls▁end｜>"),
      .before_name = TEXT("<｜tool▁call▁begin｜>function<｜tool▁sep｜>"),
      .after_name = TEXT("\n" FENCE "json\n"),
      .after_arguments = TEXT("\n" FENCE "<｜tool▁call▁end｜>"),
      .between_calls = TEXT("\n"),
      .after_calls = TEXT("<｜tool▁calls▁end｜>")}},
    /* DeepSeek V3.1 */
    {{"<｜tool▁calls▁begin｜>", NULL},
     {.triggers = {{TEXT("<｜tool▁calls▁begin｜>"), false, 0}},
      .stray = TEXT("<｜tool▁calls▁end｜>"),
      .before_calls = TEXT("<｜tool▁call▁begin｜>"),
      .after_name = TEXT("<｜tool▁sep｜>"),
      .after_arguments = TEXT("<｜tool▁call▁end｜>"),
      .between_calls = TEXT("<｜tool▁call▁begin｜>"),
      .after_calls = TEXT("<｜tool▁calls▁end｜>")}},
    /* Apertus */
    {{"<|tools_prefix|>", "<|tools_suffix|>"},
     {.triggers = {{TEXT("<|tools_prefix|>"), false, 0}},
      .stray = TEXT("<|tools_suffix|>"),
      .before_calls = TEXT("["),
      .before_name = TEXT("{\""),
      .after_name = TEXT("\": "),
      .after_arguments = TEXT("}"),
      .between_calls = TEXT(", "),
      .after_calls = TEXT("]<|tools_suffix|>")}},
    /* Nemotron Nano 2 */
    {{"<TOOLCALL>", "</TOOLCALL>"},
     {.triggers = {{TEXT("<TOOLCALL>"), false, 0}},
      .stray = TEXT("</TOOLCALL>"),
      OBJECT_LIST("]</TOOLCALL>")}},
    /* Apriel */
    {{"<tool_calls>[", "</tool_calls>"},
     {.triggers = {{TEXT("<tool_calls>"), false, 0}},
      .stray = TEXT("</tool_calls>"),
      OBJECT_LIST("]</tool_calls>")}},
    /* MiniMax-M1 */
    {{"<tool_calls>", "</tool_calls>"},
     {.triggers = {{TEXT("<tool_calls>"), false, 0}},
      .stray = TEXT("</tool_calls>"),
      .before_calls = TEXT("\n" OBJECT_NAME),
      .after_name = TEXT(OBJECT_ARGUMENTS),
      .after_arguments = TEXT("}"),
      .between_calls = TEXT("\n" OBJECT_NAME),
      .after_calls = TEXT("\n</tool_calls>")}},
    /* Llama 3.x: a bare object at the start, or one behind the tag of code */
    {{"\"parameters\": ", "ipython"},
     {.triggers = {{TEXT("<|python_tag|>"), false, 0}, {TEXT(OBJECT_NAME), true, 10}},
      .before_name = TEXT(OBJECT_NAME),
      .after_name = TEXT("\", \"parameters\": "),
      .after_arguments = TEXT("}"),
      .between_calls = TEXT("; ")}},
};

/* Qwen, Hermes, and what models without a form of their own are asked for */
static const MarkupCalls HERMES = {
    .triggers = {{TEXT("<tool_call>"), false, 0}},
    .stray = TEXT("</tool_call>"),
    .before_name = TEXT("\n" OBJECT_NAME),
    .after_name = TEXT(OBJECT_ARGUMENTS),
    .after_arguments = TEXT("}\n</tool_call>"),
    .between_calls = TEXT("\n<tool_call>"),
};

/* Gemma 2 and 3 know fences and no such tags. */
static const MarkupCalls FENCED = {
    .triggers = {{TEXT(FENCE "tool_call"), false, 0}},
    .before_name = TEXT("\n" OBJECT_NAME),
    .after_name = TEXT(OBJECT_ARGUMENTS),
    .after_arguments = TEXT("}\n" FENCE),
    .between_calls = TEXT("\n" FENCE "tool_call"),
};

static const Slice THINKING[][2] = {
    {TEXT("<think>"), TEXT("</think>")},
    {TEXT("[THINK]"), TEXT("[/THINK]")},
    {TEXT("<seed:think>"), TEXT("</seed:think>")},
    {TEXT("<|START_THINKING|>"), TEXT("<|END_THINKING|>")},
    {TEXT("<|channel>thought\n"), TEXT("<channel|>")},
};

static bool holds(Slice source, Slice text)
{
    return slice_find(source, text, 0) < source.len;
}

static bool has_signs(Slice source, const CallFamily *family)
{
    for (size_t i = 0; i < ARRAY_COUNT(family->signs); i++) {
        if (family->signs[i] && !holds(source, slice_of(family->signs[i])))
            return false;
    }
    return true;
}

static const MarkupCalls *find_calls(Slice source)
{
    for (size_t i = 0; i < ARRAY_COUNT(FAMILIES); i++) {
        if (has_signs(source, &FAMILIES[i]))
            return &FAMILIES[i].calls;
    }
    bool is_gemma = holds(source, SLICE("<start_of_turn>")) && !holds(source, SLICE("<tool_call>"));
    return is_gemma ? &FENCED : &HERMES;
}

void chat_markup_find(Slice source, Markup *out)
{
    *out = (Markup){.calls = *find_calls(source)};
    for (size_t i = 0; i < ARRAY_COUNT(THINKING); i++) {
        /* Templates that only cut reasoning out of history know the closing mark alone. */
        if (!holds(source, THINKING[i][0]) && !holds(source, THINKING[i][1]))
            continue;
        out->think_open = THINKING[i][0];
        out->think_close = THINKING[i][1];
        break;
    }
}

static Slice trim_end(Slice text)
{
    while (text.len > 0 && (unsigned char)text.ptr[text.len - 1] <= ' ')
        text.len--;
    return text;
}

ChatThinking chat_prompt_thinking(const Markup *markup, Slice prompt)
{
    Slice text = trim_end(prompt);
    if (markup->think_close.len == 0)
        return CHAT_THINKING_CLOSED;
    if (slice_ends_with(text, trim_end(markup->think_open)))
        return CHAT_THINKING_OPEN;
    return slice_ends_with(text, markup->think_close) ? CHAT_THINKING_CLOSED : CHAT_THINKING_FREE;
}
