/* Of post-processors only TemplateProcessing changes ids: its `single` form is a list of special
 * tokens around the text. ByteLevel touches offsets, which we do not give. */
#include "internal.h"

static bool add_item(Tokenizer *tokenizer, int32_t item, Error *err)
{
    if (tokenizer->template_count == TEMPLATE_ITEMS_MAX)
        return error_set(err, ERROR_LIMIT, "a template has more than %d items", TEMPLATE_ITEMS_MAX);
    tokenizer->template_items[tokenizer->template_count++] = item;
    return true;
}

static bool add_special_token(Tokenizer *tokenizer, const JsonValue *special_tokens,
                              const JsonValue *piece, Error *err)
{
    Slice name = SLICE_EMPTY;
    if (!json_read_string(piece, "id", &name, err))
        return false;
    const JsonValue *ids = json_get(json_get(special_tokens, name), SLICE("ids"));
    int shown = name.len < 60 ? (int)name.len : 60;
    if (!json_is(ids, JSON_ARRAY))
        return error_set(err, ERROR_INVALID, "special token '%.*s' has no ids", shown,
                         name.ptr ? name.ptr : "");
    for (size_t i = 0; i < ids->as.array.count; i++) {
        int64_t id;
        if (!json_to_int64(&ids->as.array.items[i], &id) || id < 0 || id >= VOCABULARY_SIZE_MAX)
            return error_set(err, ERROR_INVALID, "special token '%.*s': an id is not a token id",
                             shown, name.ptr);
        if (!add_item(tokenizer, (int32_t)id, err))
            return false;
    }
    return true;
}

static bool add_sequence(Tokenizer *tokenizer, const JsonValue *piece, Error *err)
{
    Slice name = SLICE_EMPTY;
    if (!json_read_string(piece, "id", &name, err))
        return false;
    if (!slice_equal(name, SLICE("A")))
        return error_set(err, ERROR_INVALID,
                         "the template of a single text names another sequence than A");
    return add_item(tokenizer, TEMPLATE_SEQUENCE, err);
}

static bool load_template(Tokenizer *tokenizer, const JsonValue *config, Error *err)
{
    const JsonValue *single = json_get_present(config, "single");
    const JsonValue *special_tokens = json_get_present(config, "special_tokens");
    if (tokenizer->template_count > 0)
        return error_set(err, ERROR_UNSUPPORTED, "more than one template");
    if (!json_is(single, JSON_ARRAY))
        return error_set(err, ERROR_INVALID, "'single' is missing or not a list");
    for (size_t i = 0; i < single->as.array.count; i++) {
        const JsonValue *item = &single->as.array.items[i];
        const JsonValue *special = json_get_present(item, "SpecialToken");
        const JsonValue *sequence = json_get_present(item, "Sequence");
        if (!json_is(special ? special : sequence, JSON_OBJECT))
            return error_set(err, ERROR_INVALID,
                             "item %zu of 'single' is neither token nor sequence", i);
        if (!(special ? add_special_token(tokenizer, special_tokens, special, err)
                      : add_sequence(tokenizer, sequence, err)))
            return false;
    }
    if (tokenizer->template_count == 0) /* an empty template drops the text: nobody means that */
        return error_set(err, ERROR_INVALID, "'single' is empty");
    return true;
}

static bool load_component(void *to, Slice type, const JsonValue *config, Error *err)
{
    if (slice_equal(type, SLICE("ByteLevel")))
        return true;
    if (!slice_equal(type, SLICE("TemplateProcessing")))
        return component_unknown("a post_processor", type, err);
    return load_template(to, config, err) || error_prefix(err, "post_processor TemplateProcessing");
}

bool post_processor_load(Tokenizer *tokenizer, const JsonValue *config, Error *err)
{
    return component_visit(config, "post_processor", "processors", load_component, tokenizer,
                           err) &&
           (tokenizer->template_count > 0 || add_item(tokenizer, TEMPLATE_SEQUENCE, err));
}
