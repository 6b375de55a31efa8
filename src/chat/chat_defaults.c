/* Chat templates for models that bring none, by architecture. Content may be a string, null, or a
 * list of parts of which the texts are taken. */
#include "chat_internal.h"

/* clang-format off */
#define TEXT_OF_CONTENT                                                                      \
    "{%- macro text_of(content) -%}\n"                                                       \
    "{%- if content is string -%}{{ content }}\n"                                            \
    "{%- elif content is iterable and content is not mapping -%}\n"                          \
    "{%- for part in content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}\n"      \
    "{%- endif -%}\n"                                                                        \
    "{%- endmacro -%}\n"

static const char chatml[] =
    TEXT_OF_CONTENT
    "{%- for message in messages -%}\n"
    "{{- '<|im_start|>' + message.role + '\\n' + text_of(message.content) + '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}\n";

/* Gemma knows no system role: its text precedes that of the first user turn. */
static const char gemma[] =
    TEXT_OF_CONTENT
    "{{- bos_token -}}\n"
    "{%- set state = namespace(system='') -%}\n"
    "{%- for message in messages -%}\n"
    "{%- set text = text_of(message.content) | trim -%}\n"
    "{%- if message.role == 'system' or message.role == 'developer' -%}\n"
    "{%- set state.system = state.system + text + '\\n\\n' -%}\n"
    "{%- else -%}\n"
    "{%- set role = 'model' if message.role == 'assistant' else 'user' -%}\n"
    "{%- set before = state.system if role == 'user' else '' -%}\n"
    "{%- if role == 'user' -%}{%- set state.system = '' -%}{%- endif -%}\n"
    "{{- '<start_of_turn>' + role + '\\n' + before + text + '<end_of_turn>\\n' -}}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}\n";
/* clang-format on */

Slice chat_default_source(Slice model_type)
{
    return slice_starts_with(model_type, SLICE("gemma")) ? slice_of(gemma) : slice_of(chatml);
}
