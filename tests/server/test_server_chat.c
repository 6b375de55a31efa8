/* Chat completions from request to answer: texts, streams, and errors of fields. */
#include "server_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* ---- Chat ---- */

static void chat_answers_with_the_engines_text(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    fixture_init(&fixture);
    post_chat(&fixture, "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}", &reply);
    assert_completion(&reply, PROMPT("Hi"), 256, false);
    reply_reset(&reply);
    atomic_store(&fixture.fake.never_ends, true);
    post_chat(
        &fixture,
        "{\"messages\":[{\"role\":\"developer\",\"content\":\"Be brief\"},{\"role\":\"user\","
        "\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}],"
        "\"max_tokens\":9,\"max_completion_tokens\":5.0,\"ignore_eos\":true,\"user\":null,"
        "\"chat_template_kwargs\":{\"enable_thinking\":true},\"enable_thinking\":false,"
        "\"n\":1,\"tools\":[],\"tool_choice\":\"auto\",\"logprobs\":false,\"model\":\"gpt-4o\","
        "\"response_format\":{\"type\":\"text\"},\"store\":true,\"metadata\":{\"a\":1}}",
        &reply);
    assert_completion(&reply, "<|im_start|>system\nBe brief<|im_end|>\n" PROMPT("ab") "[off]", 5,
                      true);
    char text[512];
    assert_string_equal(reply_field(&reply, "x-ignored-fields", text), "");
    reply_reset(&reply);
    atomic_store(&fixture.fake.never_ends, false);
    post_chat(
        &fixture,
        "{\"wizard\":1,\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"temperature\":null,"
        "\"max_tokens\":3,\"bad\\r\\nname\":2,\"reasoning_effort\":\"low\"}",
        &reply);
    assert_string_equal(reply_field(&reply, "x-ignored-fields", text), "wizard, bad??name");
    assert_completion(&reply, PROMPT("Hi") "[on]", 3, false);
    reply_reset(&reply);
    fixture_reset(&fixture);
}

/* Those of the body and those of a schema, and one limit for both. */
static void ignored_names_share_a_header(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    char text[512];
    fixture_init(&fixture);
    static const char LOOSE[] =
        "\"max_tokens\":1,\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{"
        "\"name\":\"n\",\"strict\":false,\"schema\":{\"type\":\"object\",\"x-note\":1}}}}";
    char body[1024];
    snprintf(body, sizeof(body), "{\"wiz\\u0000ard\":1," HELLO ",%s", LOOSE);
    post_chat(&fixture, body, &reply);
    assert_string_equal(reply_field(&reply, "x-ignored-fields", text), "wiz?ard, x-note");
    reply_reset(&reply);
    size_t length = (size_t)snprintf(body, sizeof(body), "{" HELLO);
    for (int i = 0; i < 21; i++)
        length += (size_t)snprintf(body + length, sizeof(body) - length, ",\"u%02d\":0", i);
    snprintf(body + length, sizeof(body) - length, ",%s", LOOSE);
    post_chat(&fixture, body, &reply);
    reply_field(&reply, "x-ignored-fields", text);
    assert_int_equal(strlen(text), 20 * 5 - 2);
    assert_null(strstr(text, "u20"));
    reply_reset(&reply);
    fixture_reset(&fixture);
}

static void options_reach_the_sampler(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    Arena arena;
    fixture_init(&fixture);
    /* A ban of all letters but z leaves z, which the bias lifts above the rest. */
    post_chat(&fixture,
              "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"logit_bias\":{\"122\":100},"
              "\"max_tokens\":6}",
              &reply);
    if (reply.status != 200)
        fail_msg("%.*s", SLICE_ARG(buffer_view(&reply.body)));
    const JsonValue *body = parse_json(&reply.body, &arena);
    assert_slice(text_at(body, "choices.0.message.content"), "zzzzzz");
    assert_slice(text_at(body, "choices.0.finish_reason"), "length");
    arena_reset(&arena);
    reply_reset(&reply);
    post_chat(&fixture,
              "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"logit_bias\":{\"122\":100},"
              "\"max_tokens\":6,\"stop\":[\"zzz\"]}",
              &reply);
    body = parse_json(&reply.body, &arena);
    assert_slice(text_at(body, "choices.0.message.content"), "");
    assert_slice(text_at(body, "choices.0.finish_reason"), "stop");
    assert_int_equal(number_at(body, "usage.completion_tokens"), 3);
    arena_reset(&arena);
    reply_reset(&reply);
    post_chat(&fixture, "{" HELLO ",\"max_tokens\":1}", &reply);
    body = parse_json(&reply.body, &arena); /* between one token there is no time */
    assert_true(json_to_double(value_at(body, "timings.predicted_ms")) == 0);
    assert_true(json_to_double(value_at(body, "timings.predicted_per_second")) == 0);
    arena_reset(&arena);
    reply_reset(&reply);
    Buffer first;
    buffer_init(&first, 1 << 16);
    for (int i = 0; i < 3; i++) { /* same seed, same text; another seed, another */
        char request[256];
        snprintf(request, sizeof(request),
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"temperature\":2,\"top_"
                 "p\":0.9,"
                 "\"seed\":%s,\"max_tokens\":40,\"ignore_eos\":true}",
                 i < 2 ? "18446744073709551615" : "-3");
        post_chat(&fixture, request, &reply);
        body = parse_json(&reply.body, &arena);
        Slice content = text_at(body, "choices.0.message.content");
        if (i == 0)
            buffer_append_slice(&first, content);
        assert_int_equal(slice_equal(content, buffer_view(&first)), i < 2);
        arena_reset(&arena);
        reply_reset(&reply);
    }
    buffer_reset(&first);
    fixture_reset(&fixture);
}

/* ---- Streams ---- */

static void streams_carry_the_same_text(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    Stream stream;
    Buffer expected;
    bool ended;
    size_t n_prompt;
    char text[512];
    fixture_init(&fixture);
    post_chat(&fixture,
              "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"stream\":true,"
              "\"stream_options\":{\"include_usage\":true,\"more\":1}}",
              &reply);
    assert_int_equal(reply.status, 200);
    assert_string_equal(reply_field(&reply, "Content-Type", text), "text/event-stream");
    assert_string_equal(reply_field(&reply, "Cache-Control", text), "no-cache");
    assert_string_equal(reply_field(&reply, "X-Accel-Buffering", text), "no");
    assert_string_equal(reply_field(&reply, "Transfer-Encoding", text), "chunked");
    read_events(&stream, buffer_view(&reply.body));
    expected_reply(PROMPT("Hi"), false, 256, &expected, &ended, &n_prompt);
    assert_true(slice_equal(buffer_view(&stream.text), buffer_view(&expected)));
    assert_string_equal(stream.finish, ended ? "stop" : "length");
    assert_true(stream.done && stream.has_usage && stream.has_null_usage);
    assert_int_equal(stream.completion_tokens, expected.len);
    buffer_reset(&stream.text);
    buffer_reset(&expected);
    reply_reset(&reply);

    /* Without include_usage there is no usage key; a character arrives whole. */
    post_chat(&fixture,
              "{\"messages\":[{\"role\":\"user\",\"content\":\"\\u0002\"}],\"stream\":true,"
              "\"max_tokens\":31}",
              &reply);
    read_events(&stream, buffer_view(&reply.body));
    assert_false(stream.has_usage || stream.has_null_usage);
    assert_true(utf8_is_valid(buffer_view(&stream.text)));
    assert_true(stream.text.len >= 30);
    assert_string_equal(stream.finish, "length");
    buffer_reset(&stream.text);
    reply_reset(&reply);
    fixture_reset(&fixture);
}

static void tokens_are_sent_as_they_come(void **state)
{
    (void)state;
    Fixture fixture;
    Client client;
    fixture_init(&fixture);
    atomic_store(&fixture.fake.never_ends, true);
    atomic_store(&fixture.fake.delay_microseconds, 100000);
    client_open(&client, fixture.port);
    const char body[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"stream\":true,"
                        "\"max_tokens\":12}";
    send_post(&client, CHAT_HEAD, body);
    double start = clock_monotonic_seconds(), most = 0, last = start;
    size_t arrivals = 0;
    while (slice_find(buffer_view(&client.input), SLICE("[DONE]"), 0) == SIZE_MAX) {
        assert_true(client_receive(&client));
        double now = clock_monotonic_seconds();
        most = now - last > most ? now - last : most;
        last = now;
        arrivals++;
    }
    assert_true(arrivals >= 10);
    assert_true(most < 0.9); /* gathered, they would all come after 1.2 s */
    assert_true(last - start > 1.0);
    client_close(&client);
    fixture_reset(&fixture);
}

static void http_1_0_streams_until_close(void **state)
{
    (void)state;
    Fixture fixture;
    Client client;
    Reply reply;
    Stream stream;
    char text[512];
    fixture_init(&fixture);
    client_open(&client, fixture.port);
    send_post(&client, "POST /v1/chat/completions HTTP/1.0\r\n",
              "{\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}");
    client_read_reply(&client, &reply, false);
    assert_int_equal(reply.status, 200);
    assert_string_equal(reply_field(&reply, "Transfer-Encoding", text), "");
    read_events(&stream, buffer_view(&reply.body));
    assert_true(stream.done);
    buffer_reset(&stream.text);
    reply_reset(&reply);
    client_close(&client);
    fixture_reset(&fixture);
}

static void silent_streams_get_comments(void **state)
{
    (void)state;
    Fixture fixture;
    Client client;
    fixture_init(&fixture);
    atomic_store(&fixture.fake.hold, true);
    client_open(&client, fixture.port);
    send_post(&client, "POST /chat/completions HTTP/1.1\r\nHost: localhost\r\n",
              "{\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}");
    double start = clock_monotonic_seconds();
    assert_true(client_wait_for(&client, "\"role\":\"assistant\""));
    assert_true(client_wait_for(&client, "\n: keep-alive\n\n"));
    double waited = clock_monotonic_seconds() - start;
    assert_true(waited > 4.5 && waited < 15); /* a busy machine may be late */
    atomic_store(&fixture.fake.hold, false);
    assert_true(client_wait_for(&client, "[DONE]"));
    client_close(&client);
    fixture_reset(&fixture);
}

/* ---- Errors of fields ---- */

typedef struct BadBody {
    const char *body, *code, *param;
} BadBody;

#define TOOL(function) "\"tools\":[{\"type\":\"function\",\"function\":" function "}]"

static const BadBody BAD_BODIES[] = {
    /* JSON */
    {"", "invalid_json", NULL},
    {"{", "invalid_json", NULL},
    {"{\"messages\":[],}", "invalid_json", NULL},
    {"{'messages':[]}", "invalid_json", NULL},
    {"{" HELLO "} x", "invalid_json", NULL},
    {"{" HELLO ",\"temperature\":NaN}", "invalid_json", NULL},
    {"{" HELLO ",\"seed\":01}", "invalid_json", NULL},
    {"{" HELLO ",\"user\":\"\xff\"}", "invalid_json", NULL},
    {"{" HELLO ",\"user\":\"\\ud800\"}", "invalid_json", NULL},
    {"{" HELLO ",\"user\":\"a\nb\"}", "invalid_json", NULL},
    {"[]", "invalid_type", NULL},
    {"\"text\"", "invalid_type", NULL},
    {"null", "invalid_type", NULL},
    /* messages */
    {"{}", "missing_required_parameter", "messages"},
    {"{\"messages\":null}", "missing_required_parameter", "messages"},
    {"{\"messages\":[]}", "empty_array", "messages"},
    {"{\"messages\":\"Hi\"}", "invalid_type", "messages"},
    {"{\"messages\":[1]}", "invalid_type", "messages[0]"},
    {"{\"messages\":[{\"content\":\"Hi\"}]}", "missing_required_parameter", "messages[0].role"},
    {"{\"messages\":[{\"role\":1,\"content\":\"Hi\"}]}", "invalid_type", "messages[0].role"},
    {"{\"messages\":[{\"role\":\"wizard\",\"content\":\"Hi\"}]}", "invalid_value",
     "messages[0].role"},
    {"{\"messages\":[{\"role\":\"user\"}]}", "missing_required_parameter", "messages[0].content"},
    {"{\"messages\":[{\"role\":\"assistant\",\"content\":null}]}", "missing_required_parameter",
     "messages[0].content"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":5}]}", "invalid_type", "messages[0].content"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[]}]}", "empty_array", "messages[0].content"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[\"a\"]}]}", "invalid_type",
     "messages[0].content[0]"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{}}]}]}",
     "unsupported_value", "messages[0].content[0].type"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"file\"}]}]}", "unsupported_value",
     "messages[0].content[0].type"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"smell\"}]}]}", "invalid_value",
     "messages[0].content[0].type"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}",
     "missing_required_parameter", "messages[0].content[0].text"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"refusal\",\"refusal\":\"x\"}]}]}",
     "invalid_value", "messages[0].content[0].type"},
    {"{\"messages\":[{\"role\":\"tool\",\"content\":\"1\"}]}", "missing_required_parameter",
     "messages[0].tool_call_id"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"name\":1}]}", "invalid_type",
     "messages[0].name"},
    {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{}]}]}", "missing_required_parameter",
     "messages[0].tool_calls[0].id"},
    {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"a\",\"function\":{\"name\":"
     "\"f\","
     "\"arguments\":{}}}]}]}",
     "invalid_type", "messages[0].tool_calls[0].function.arguments"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"system\",\"content\":\"b\"}]"
     "}",
     "invalid_value", "messages"},
    /* numbers */
    {"{" HELLO ",\"max_tokens\":0}", "integer_below_min_value", "max_tokens"},
    {"{" HELLO ",\"max_tokens\":2147483648}", "integer_above_max_value", "max_tokens"},
    {"{" HELLO ",\"max_tokens\":1e999}", "integer_above_max_value", "max_tokens"},
    {"{" HELLO ",\"max_tokens\":1.5}", "invalid_type", "max_tokens"},
    {"{" HELLO ",\"max_tokens\":\"5\"}", "invalid_type", "max_tokens"},
    {"{" HELLO ",\"max_tokens\":true}", "invalid_type", "max_tokens"},
    {"{" HELLO ",\"max_completion_tokens\":-1}", "integer_below_min_value",
     "max_completion_tokens"},
    {"{" HELLO ",\"temperature\":-0.1}", "decimal_below_min_value", "temperature"},
    {"{" HELLO ",\"temperature\":2.1}", "decimal_above_max_value", "temperature"},
    {"{" HELLO ",\"temperature\":1e999}", "decimal_above_max_value", "temperature"},
    {"{" HELLO ",\"temperature\":\"1\"}", "invalid_type", "temperature"},
    {"{" HELLO ",\"top_p\":1.01}", "decimal_above_max_value", "top_p"},
    {"{" HELLO ",\"top_p\":-1}", "decimal_below_min_value", "top_p"},
    {"{" HELLO ",\"top_k\":-2}", "integer_below_min_value", "top_k"},
    {"{" HELLO ",\"min_p\":2}", "decimal_above_max_value", "min_p"},
    {"{" HELLO ",\"repetition_penalty\":0}", "decimal_below_min_value", "repetition_penalty"},
    {"{" HELLO ",\"repetition_penalty\":11}", "decimal_above_max_value", "repetition_penalty"},
    {"{" HELLO ",\"repetition_context_size\":-1}", "integer_below_min_value",
     "repetition_context_size"},
    {"{" HELLO ",\"presence_penalty\":2.5}", "decimal_above_max_value", "presence_penalty"},
    {"{" HELLO ",\"frequency_penalty\":-2.5}", "decimal_below_min_value", "frequency_penalty"},
    {"{" HELLO ",\"seed\":1.5}", "invalid_type", "seed"},
    {"{" HELLO ",\"seed\":18446744073709551616}", "integer_above_max_value", "seed"},
    {"{" HELLO ",\"seed\":1e20}", "integer_above_max_value", "seed"},
    {"{" HELLO ",\"seed\":-9223372036854775809}", "integer_below_min_value", "seed"},
    {"{" HELLO ",\"seed\":-1e19}", "integer_below_min_value", "seed"},
    {"{" HELLO ",\"logit_bias\":[]}", "invalid_type", "logit_bias"},
    {"{" HELLO ",\"logit_bias\":{\"x\":1}}", "invalid_value", "logit_bias"},
    {"{" HELLO ",\"logit_bias\":{\"999\":1}}", "invalid_value", "logit_bias"},
    {"{" HELLO ",\"logit_bias\":{\"5\":101}}", "decimal_above_max_value", "logit_bias.5"},
    {"{" HELLO ",\"stop\":5}", "invalid_type", "stop"},
    {"{" HELLO ",\"stop\":[1]}", "invalid_type", "stop[0]"},
    {"{" HELLO ",\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]}", "array_above_max_length", "stop"},
    {"{" HELLO ",\"ignore_eos\":1}", "invalid_type", "ignore_eos"},
    /* the rest */
    {"{" HELLO ",\"model\":5}", "invalid_type", "model"},
    {"{" HELLO ",\"stream\":\"yes\"}", "invalid_type", "stream"},
    {"{" HELLO ",\"stream_options\":{}}", "invalid_value", "stream_options"},
    {"{" HELLO ",\"stream\":true,\"stream_options\":{\"include_usage\":1}}", "invalid_type",
     "stream_options.include_usage"},
    {"{" HELLO ",\"n\":0}", "integer_below_min_value", "n"},
    {"{" HELLO ",\"n\":17}", "integer_above_max_value", "n"},
    {"{" HELLO ",\"logprobs\":1}", "invalid_type", "logprobs"},
    {"{" HELLO ",\"logprobs\":true,\"top_logprobs\":21}", "integer_above_max_value",
     "top_logprobs"},
    {"{" HELLO ",\"top_logprobs\":2}", "invalid_value", "top_logprobs"},
    {"{" HELLO ",\"tools\":{}}", "invalid_type", "tools"},
    {"{" HELLO ",\"tools\":[5]}", "invalid_type", "tools[0]"},
    {"{" HELLO ",\"tools\":[{}]}", "missing_required_parameter", "tools[0].type"},
    {"{" HELLO ",\"tools\":[{\"type\":\"function\"}]}", "missing_required_parameter",
     "tools[0].function"},
    {"{" HELLO ",\"tools\":[{\"type\":\"web_search\"}]}", "unsupported_value", "tools[0].type"},
    {"{" HELLO "," TOOL("{}") "}", "missing_required_parameter", "tools[0].function.name"},
    {"{" HELLO "," TOOL("{\"name\":\"a b\"}") "}", "invalid_value", "tools[0].function.name"},
    {"{" HELLO "," TOOL("{\"name\":\"\"}") "}", "invalid_value", "tools[0].function.name"},
    {"{" HELLO "," TOOL("{\"name\":\"f\",\"strict\":1}") "}", "invalid_type",
     "tools[0].function.strict"},
    {"{" HELLO "," TOOL("{\"name\":\"f\",\"parameters\":[]}") "}", "invalid_type",
     "tools[0].function.parameters"},
    {"{" HELLO "," TOOL("{\"name\":\"f\",\"parameters\":{\"type\":\"string\"}}") "}",
     "invalid_json_schema", "tools[0].function.parameters"},
    {"{" HELLO "," TOOL("{\"name\":\"f\",\"parameters\":{\"$ref\":\"#/$defs/no\"}}") "}",
     "invalid_json_schema", "tools[0].function.parameters"},
    {"{" HELLO "," TOOL("{\"name\":\"f\",\"strict\":true,\"parameters\":{\"not\":{}}}") "}",
     "invalid_json_schema", "tools[0].function.parameters"},
    {"{" HELLO
     "," TOOL("{\"name\":\"f\"}},{\"type\":\"function\",\"function\":{\"name\":\"f\"}") "}",
     "invalid_value", "tools[1].function.name"},
    {"{" HELLO ",\"tool_choice\":\"required\"}", "invalid_value", "tool_choice"},
    {"{" HELLO ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"f\"}}}",
     "invalid_value", "tool_choice"},
    {"{" HELLO "," TOOL("{\"name\":\"f\"}") ",\"tool_choice\":{}}", "missing_required_parameter",
     "tool_choice.type"},
    {"{" HELLO "," TOOL("{\"name\":\"f\"}") ",\"tool_choice\":{\"type\":\"function\",\"function\":{"
                                            "\"name\":\"g\"}}}",
     "invalid_value", "tool_choice.function.name"},
    {"{" HELLO "," TOOL("{\"name\":\"f\"}") ",\"tool_choice\":{\"type\":\"allowed_tools\","
                                            "\"allowed_tools\":{\"mode\":\"auto\",\"tools\":[]}}}",
     "empty_array", "tool_choice.allowed_tools.tools"},
    {"{" HELLO "," TOOL("{\"name\":\"f\"}") ",\"tool_choice\":{\"type\":\"allowed_tools\","
                                            "\"allowed_tools\":{\"tools\":[]}}}",
     "missing_required_parameter", "tool_choice.allowed_tools.mode"},
    {"{" HELLO "," TOOL("{\"name\":\"f\"}") ",\"tool_choice\":{\"type\":\"allowed_tools\","
                                            "\"allowed_tools\":{\"mode\":\"any\",\"tools\":[]}}}",
     "invalid_value", "tool_choice.allowed_tools.mode"},
    {"{" HELLO ",\"parallel_tool_calls\":1}", "invalid_type", "parallel_tool_calls"},
    {"{" HELLO ",\"tool_choice\":\"maybe\"}", "invalid_value", "tool_choice"},
    {"{" HELLO ",\"response_format\":{\"type\":\"json_schema\"}}", "missing_required_parameter",
     "response_format.json_schema"},
    {"{" HELLO ",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\","
     "\"schema\":{\"not\":{}}}}}",
     "invalid_json_schema", "response_format.json_schema.schema"},
    {"{" HELLO ",\"response_format\":{\"type\":\"json_object\",\"schema\":[]}}",
     "invalid_json_schema", "response_format.schema"},
    {"{" HELLO ",\"response_format\":{\"type\":\"json_object\",\"schema\":{\"not\":{}}}}",
     "invalid_json_schema", "response_format.schema"},
    {"{" HELLO ",\"response_format\":{\"type\":\"json_object\"},\"guided_regex\":\"a\"}",
     "invalid_value", "guided_regex"},
    {"{" HELLO ",\"response_format\":{\"type\":\"xml\"}}", "invalid_value", "response_format.type"},
    {"{" HELLO ",\"response_format\":{}}", "missing_required_parameter", "response_format.type"},
    {"{" HELLO ",\"modalities\":[\"audio\"]}", "unsupported_value", "modalities"},
    {"{" HELLO ",\"audio\":{}}", "unsupported_value", "audio"},
    {"{" HELLO ",\"functions\":[]}", "unsupported_parameter", "functions"},
    {"{" HELLO ",\"guided_regex\":\"(\"}", "invalid_grammar", "guided_regex"},
    {"{" HELLO ",\"guided_choice\":[]}", "empty_array", "guided_choice"},
    {"{" HELLO ",\"guided_choice\":[1]}", "invalid_type", "guided_choice"},
    {"{" HELLO ",\"grammar\":\"a\"}", "invalid_grammar", "grammar"},
    {"{" HELLO ",\"reasoning_budget_tokens\":-2}", "integer_below_min_value",
     "reasoning_budget_tokens"},
    {"{" HELLO ",\"reasoning_effort\":\"huge\"}", "invalid_value", "reasoning_effort"},
    {"{" HELLO ",\"enable_thinking\":\"no\"}", "invalid_type", "enable_thinking"},
    {"{" HELLO ",\"chat_template_kwargs\":1}", "invalid_type", "chat_template_kwargs"},
};

/* Every optional field as null, and every one at the ends of its range. */
static void null_is_absent_and_ends_belong_to_ranges(void **state)
{
    (void)state;
    static const char *const fields[] = {"model",
                                         "max_tokens",
                                         "max_completion_tokens",
                                         "stream",
                                         "stream_options",
                                         "n",
                                         "logprobs",
                                         "top_logprobs",
                                         "tools",
                                         "tool_choice",
                                         "parallel_tool_calls",
                                         "response_format",
                                         "chat_template_kwargs",
                                         "enable_thinking",
                                         "reasoning_effort",
                                         "reasoning_budget_tokens",
                                         "temperature",
                                         "top_p",
                                         "top_k",
                                         "min_p",
                                         "repetition_penalty",
                                         "repetition_context_size",
                                         "presence_penalty",
                                         "frequency_penalty",
                                         "logit_bias",
                                         "seed",
                                         "stop",
                                         "ignore_eos",
                                         "modalities",
                                         "audio",
                                         "functions",
                                         "function_call",
                                         "guided_regex",
                                         "guided_choice",
                                         "grammar",
                                         "user",
                                         "metadata",
                                         "store",
                                         "service_tier",
                                         "safety_identifier",
                                         "prompt_cache_key",
                                         "prompt_cache_retention",
                                         "verbosity",
                                         "prediction",
                                         "web_search_options",
                                         "moderation"};
    static const char *const good[] = {"\"max_tokens\":1",
                                       "\"max_tokens\":2147483647",
                                       "\"max_completion_tokens\":1.0",
                                       "\"n\":1",
                                       "\"n\":16",
                                       "\"logprobs\":true,\"top_logprobs\":0",
                                       "\"logprobs\":true,\"top_logprobs\":20",
                                       "\"temperature\":0",
                                       "\"temperature\":2.0",
                                       "\"top_p\":0",
                                       "\"top_p\":1",
                                       "\"top_k\":-1",
                                       "\"top_k\":9007199254740993",
                                       "\"min_p\":0",
                                       "\"min_p\":1",
                                       "\"repetition_penalty\":0.001",
                                       "\"repetition_penalty\":10",
                                       "\"repetition_context_size\":0",
                                       "\"presence_penalty\":-2",
                                       "\"presence_penalty\":2",
                                       "\"frequency_penalty\":-2",
                                       "\"frequency_penalty\":2",
                                       "\"logit_bias\":{}",
                                       "\"logit_bias\":{\"0\":-100,\"256\":100}",
                                       "\"seed\":-9223372036854775808",
                                       "\"seed\":18446744073709551615",
                                       "\"seed\":1e19",
                                       "\"stop\":[]",
                                       "\"stop\":\"\"",
                                       "\"stop\":[\"q\",\"\",\"x\",\"y\"]",
                                       "\"modalities\":[\"text\"]",
                                       "\"reasoning_effort\":\"none\"",
                                       "\"reasoning_budget_tokens\":-1",
                                       "\"tool_choice\":\"none\"",
                                       "\"parallel_tool_calls\":false",
                                       "\"response_format\":{\"type\":\"text\"}",
                                       "\"user\":5",
                                       "\"metadata\":\"any\"",
                                       "\"prompt_cache_anything\":[]"};
    Fixture fixture;
    Reply reply;
    char text[512];
    fixture_init(&fixture);
    for (size_t i = 0; i < ARRAY_COUNT(fields) + ARRAY_COUNT(good); i++) {
        char body[256];
        size_t at = i - ARRAY_COUNT(fields);
        if (i < ARRAY_COUNT(fields))
            snprintf(body, sizeof(body), "{" HELLO ",\"%s\":null}", fields[i]);
        else
            /* One token: after some tokens the fake engine fails. */
            snprintf(body, sizeof(body), "{" HELLO ",\"max_tokens\":1,%s}", good[at]);
        post_chat(&fixture, body, &reply);
        if (reply.status != 200)
            fail_msg("%s: %d %.*s", body, reply.status, SLICE_ARG(buffer_view(&reply.body)));
        assert_string_equal(reply_field(&reply, "x-ignored-fields", text), "");
        reply_reset(&reply);
    }
    fixture_reset(&fixture);
}

static void bad_bodies_are_named(void **state)
{
    (void)state;
    Fixture fixture;
    fixture_init(&fixture);
    for (size_t i = 0; i < ARRAY_COUNT(BAD_BODIES); i++) {
        Reply reply;
        char text[512];
        post_chat(&fixture, BAD_BODIES[i].body, &reply);
        Slice code = slice_of(BAD_BODIES[i].code);
        if (reply.status != 400 || slice_find(buffer_view(&reply.body), code, 0) == SIZE_MAX)
            fail_msg("%s: %d %.*s", BAD_BODIES[i].body, reply.status,
                     SLICE_ARG(buffer_view(&reply.body)));
        assert_error(&reply, 400, BAD_BODIES[i].code, BAD_BODIES[i].param);
        assert_string_equal(reply_field(&reply, "Connection", text), "");
        reply_reset(&reply);
    }
    assert_int_equal(atomic_load(&fixture.fake.passes), 0);
    fixture_reset(&fixture);
}

static void deep_and_long_bodies_are_refused(void **state)
{
    (void)state;
    Fixture fixture;
    Reply reply;
    Buffer body;
    fixture_init(&fixture);
    buffer_init(&body, 64 << 20);
    for (int i = 0; i < 300; i++)
        buffer_append_byte(&body, '[');
    buffer_append_byte(&body, '\0');
    post_chat(&fixture, body.ptr, &reply);
    assert_error(&reply, 400, "invalid_json", NULL);
    reply_reset(&reply);

    buffer_clear(&body);
    buffer_append_text(&body, "{\"messages\":[{\"role\":\"user\",\"content\":\"");
    for (int i = 0; i < CONTEXT; i++)
        buffer_append_byte(&body, 'y');
    buffer_append_text(&body, "\"}]}");
    buffer_append_byte(&body, '\0');
    post_chat(&fixture, body.ptr, &reply);
    assert_error(&reply, 400, "context_length_exceeded", "messages");
    assert_true(slice_find(buffer_view(&reply.body), SLICE("9019"), 0) != SIZE_MAX);
    assert_true(slice_find(buffer_view(&reply.body), SLICE("9000"), 0) != SIZE_MAX);
    reply_reset(&reply);
    buffer_reset(&body);
    fixture_reset(&fixture);
}

/* Given a pattern, only the tests whose names match it run. */
int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chat_answers_with_the_engines_text),
        cmocka_unit_test(ignored_names_share_a_header),
        cmocka_unit_test(options_reach_the_sampler),
        cmocka_unit_test(streams_carry_the_same_text),
        cmocka_unit_test(tokens_are_sent_as_they_come),
        cmocka_unit_test(http_1_0_streams_until_close),
        cmocka_unit_test(silent_streams_get_comments),
        cmocka_unit_test(null_is_absent_and_ends_belong_to_ranges),
        cmocka_unit_test(bad_bodies_are_named),
        cmocka_unit_test(deep_and_long_bodies_are_refused),
    };
    return cmocka_run_group_tests(tests, server_tests_setup, server_tests_teardown);
}
