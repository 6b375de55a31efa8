#include "case_file.h"

#include <setjmp.h>
#include <stdio.h>
/* cmocka needs what is above */
#include <cmocka.h>

enum { CASE_FILE_BYTES_MAX = 1 << 20 };

size_t case_file_visit(const char *name, void (*visit)(Slice line))
{
    char path[PATH_BYTES_MAX];
    Error err = {0};
    Buffer content;
    buffer_init(&content, CASE_FILE_BYTES_MAX);
    if (!path_join(path, sizeof(path), TEST_DATA_DIR "/json", name, &err) ||
        !file_read(path, CASE_FILE_BYTES_MAX, &content, &err))
        fail_msg("%s", err.message);
    size_t visited = 0;
    Slice text = buffer_view(&content);
    for (size_t at = 0; at < text.len;) {
        size_t end = slice_find(text, SLICE("\n"), at);
        if (end == SIZE_MAX)
            end = text.len;
        Slice line = {text.ptr + at, end - at};
        if (line.len > 0 && line.ptr[0] != '#') {
            visit(line);
            visited++;
        }
        at = end + 1;
    }
    buffer_reset(&content);
    return visited;
}

void case_file_split(Slice s, Slice separator, Slice *left, Slice *right)
{
    size_t at = slice_find(s, separator, 0);
    if (at == SIZE_MAX)
        fail_msg("no \"%.*s\" in: %.*s", SLICE_ARG(separator), SLICE_ARG(s));
    size_t after = at + separator.len;
    *left = (Slice){s.ptr, at};
    *right = (Slice){s.ptr + after, s.len - after};
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

void case_file_decode(Slice s, Buffer *out)
{
    buffer_clear(out);
    for (size_t i = 0; i < s.len; i++) {
        bool byte = s.ptr[i] == '<' && s.len - i >= 4 && s.ptr[i + 3] == '>' &&
                    hex_digit(s.ptr[i + 1]) >= 0 && hex_digit(s.ptr[i + 2]) >= 0;
        if (!byte) {
            buffer_append_byte(out, s.ptr[i]);
            continue;
        }
        buffer_append_byte(out, (char)(hex_digit(s.ptr[i + 1]) << 4 | hex_digit(s.ptr[i + 2])));
        i += 3;
    }
    assert_false(out->failed);
}
