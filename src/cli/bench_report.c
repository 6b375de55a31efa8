/* A bench report as tables for people, as JSON lines, or as comma-separated values.
 *
 * The machine-readable forms have one entry for each pair of a prefill and a decode measurement,
 * with the same fields in the same order; CSV has their names in its first line. */
#include "bench.h"

#include "json.h"

#include <stdio.h>

typedef enum FieldKind { FIELD_TEXT, FIELD_COUNT, FIELD_NUMBER } FieldKind;

typedef struct Field {
    const char *name;
    FieldKind kind;
    const char *text;
    uint64_t count;
    double number;
} Field;

enum { FIELDS_MAX = 32 };

typedef struct Fields {
    Field items[FIELDS_MAX];
    size_t count;
} Fields;

static const char *model_name(const BenchReport *report)
{
    return report->arguments->shape ? report->arguments->shape : report->arguments->model;
}

static const char *precision_name(EnginePrecision precision)
{
    static const char *const names[] = {
        [ENGINE_PRECISION_INT12] = "int12",
        [ENGINE_PRECISION_INT16] = "int16",
        [ENGINE_PRECISION_INT8] = "int8",
        [ENGINE_PRECISION_F32] = "f32",
    };
    return names[precision];
}

static size_t kv_bits(const Arguments *arguments)
{
    if (arguments->kv_bits > 0)
        return (size_t)arguments->kv_bits;
    return arguments->precision == ENGINE_PRECISION_F32 ? 32 : 16;
}

static void add_text(Fields *fields, const char *name, const char *text)
{
    fields->items[fields->count++] = (Field){.name = name, .kind = FIELD_TEXT, .text = text};
}

static void add_count(Fields *fields, const char *name, size_t count)
{
    fields->items[fields->count++] = (Field){.name = name, .kind = FIELD_COUNT, .count = count};
}

static void add_number(Fields *fields, const char *name, double number)
{
    fields->items[fields->count++] = (Field){.name = name, .kind = FIELD_NUMBER, .number = number};
}

static void fill_fields(const BenchReport *report, const BenchPrefill *prefill,
                        const BenchDecode *decode, Fields *out)
{
    const Arguments *arguments = report->arguments;
    out->count = 0;
    add_text(out, "model", model_name(report));
    add_text(out, "backend", report->engine.backend);
    add_text(out, "device", report->engine.device);
    add_text(out, "precision", precision_name(arguments->precision));
    add_count(out, "kv_bits", kv_bits(arguments));
    add_count(out, "bits", arguments->shape ? (size_t)arguments->bits : 0);
    add_count(out, "group_size", arguments->shape ? (size_t)arguments->group_size : 0);
    add_count(out, "threads", report->engine.threads);
    add_count(out, "prefill", prefill->tokens);
    add_count(out, "decode", (size_t)arguments->decode);
    add_count(out, "depth", decode->depth);
    add_count(out, "batch", decode->batch);
    add_count(out, "repeat", (size_t)arguments->repeat);
    add_number(out, "prefill_tps", prefill->rate.median);
    add_number(out, "prefill_tps_min", prefill->rate.least);
    add_number(out, "prefill_tps_max", prefill->rate.most);
    add_number(out, "decode_tps", decode->rate.median);
    add_number(out, "decode_tps_min", decode->rate.least);
    add_number(out, "decode_tps_max", decode->rate.most);
    add_count(out, "peak_rss_bytes", report->peak_bytes);
    add_count(out, "weight_bytes", report->engine.weight_bytes);
    add_count(out, "kv_bytes_per_token", report->engine.kv_bytes_per_token);
    add_number(out, "load_seconds", report->load_seconds);
    add_number(out, "read_gbps", report->limits.read_bytes_per_second * 1e-9);
    add_number(out, "int8_gmacs", report->limits.int8_macs_per_second * 1e-9);
    add_number(out, "prefill_share", prefill->rate.share);
    add_number(out, "decode_share", decode->rate.share);
}

static void append_json(Buffer *out, const Fields *fields)
{
    JsonWriter writer;
    json_writer_init(&writer, out, 0);
    json_write_object_begin(&writer);
    for (size_t i = 0; i < fields->count; i++) {
        const Field *field = &fields->items[i];
        json_write_key(&writer, field->name);
        if (field->kind == FIELD_TEXT)
            json_write_text(&writer, field->text);
        else if (field->kind == FIELD_COUNT)
            json_write_uint(&writer, field->count);
        else
            json_write_double(&writer, field->number);
    }
    json_write_object_end(&writer);
    buffer_append_byte(out, '\n');
}

/* A text in quotes when it holds a comma or quotes (RFC 4180). */
static void append_csv_text(Buffer *out, Slice text)
{
    bool is_plain = slice_find(text, SLICE(","), 0) == SIZE_MAX &&
                    slice_find(text, SLICE("\""), 0) == SIZE_MAX &&
                    slice_find(text, SLICE("\n"), 0) == SIZE_MAX;
    if (is_plain) {
        buffer_append_slice(out, text);
        return;
    }
    buffer_append_byte(out, '"');
    for (size_t i = 0; i < text.len; i++) {
        if (text.ptr[i] == '"')
            buffer_append_byte(out, '"');
        buffer_append_byte(out, text.ptr[i]);
    }
    buffer_append_byte(out, '"');
}

static void append_csv(Buffer *out, const Fields *fields, bool names)
{
    for (size_t i = 0; i < fields->count; i++) {
        const Field *field = &fields->items[i];
        if (i > 0)
            buffer_append_byte(out, ',');
        if (names)
            buffer_append_text(out, field->name);
        else if (field->kind == FIELD_TEXT)
            append_csv_text(out, slice_of(field->text));
        else if (field->kind == FIELD_COUNT)
            buffer_append_format(out, "%llu", (unsigned long long)field->count);
        else
            buffer_append_format(out, "%.6g", field->number);
    }
    buffer_append_byte(out, '\n');
}

static bool print_machine_readable(const BenchReport *report, Error *err)
{
    Buffer out;
    buffer_init(&out, 16 << 20);
    for (size_t p = 0; p < report->n_prefill; p++) {
        for (size_t d = 0; d < report->n_decode; d++) {
            Fields fields;
            fill_fields(report, &report->prefill[p], &report->decode[d], &fields);
            if (report->arguments->json) {
                append_json(&out, &fields);
            } else {
                if (p == 0 && d == 0)
                    append_csv(&out, &fields, true);
                append_csv(&out, &fields, false);
            }
        }
    }
    bool ok = write_output(&out, err);
    buffer_reset(&out);
    return ok;
}

static void print_table(const BenchReport *report)
{
    const Arguments *arguments = report->arguments;
    printf("%s", model_name(report));
    if (arguments->shape && arguments->bits == 16)
        printf(", random bfloat16 weights");
    else if (arguments->shape)
        printf(", random weights of %lld bits in groups of %lld", (long long)arguments->bits,
               (long long)arguments->group_size);
    printf("; %s (%s), precision %s\n", report->engine.backend, report->engine.device,
           precision_name(arguments->precision));
    printf("machine  reads %.1f GB/s, %s int8 %.1f G multiply-adds/s\n",
           report->limits.read_bytes_per_second * 1e-9, report->limits.instruction_set,
           report->limits.int8_macs_per_second * 1e-9);
    printf(
        "memory   weights %.1f MB, KV %zu bytes a token (%zu bits), peak %.1f MB; loaded in %.2f "
        "s\n",
        (double)report->engine.weight_bytes * 1e-6, report->engine.kv_bytes_per_token,
        kv_bits(arguments), (double)report->peak_bytes * 1e-6, report->load_seconds);
    printf("\nprefill    tokens            tokens/s       min       max   of int8 rate\n");
    for (size_t i = 0; i < report->n_prefill; i++) {
        const BenchPrefill *row = &report->prefill[i];
        printf("         %8zu            %8.1f  %8.1f  %8.1f           %3.0f%%\n", row->tokens,
               row->rate.median, row->rate.least, row->rate.most, row->rate.share * 100);
    }
    printf("\ndecode    context   batch     tokens/s       min       max   of read rate\n");
    for (size_t i = 0; i < report->n_decode; i++) {
        const BenchDecode *row = &report->decode[i];
        printf("         %8zu   %5zu     %8.1f  %8.1f  %8.1f           %3.0f%%\n", row->depth,
               row->batch, row->rate.median, row->rate.least, row->rate.most,
               row->rate.share * 100);
    }
}

bool bench_report_print(const BenchReport *report, Error *err)
{
    if (report->arguments->json || report->arguments->csv)
        return print_machine_readable(report, err);
    print_table(report);
    return true;
}
