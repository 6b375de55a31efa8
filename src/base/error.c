#include "base.h"

#include <stdio.h>
#include <string.h>

static void replace_control_characters(char *text)
{
    for (char *p = text; *p; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    }
}

bool error_set(Error *err, ErrorCode code, const char *format, ...)
{
    if (!err)
        return false;
    err->code = code;
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof(err->message), format, args);
    va_end(args);
    replace_control_characters(err->message);
    return false;
}

bool error_no_memory(Error *err, const char *what)
{
    return error_set(err, ERROR_MEMORY, "out of memory for %s", what);
}

bool error_prefix(Error *err, const char *format, ...)
{
    if (!err)
        return false;
    char prefix[ERROR_MESSAGE_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(prefix, sizeof(prefix), format, args);
    va_end(args);
    replace_control_characters(prefix);

    char old[ERROR_MESSAGE_MAX];
    memcpy(old, err->message, sizeof(old));
    size_t len = strlen(prefix);
    /* Leave the tail of the message its share: the fault matters more than its place. */
    if (len > sizeof(prefix) / 2)
        len = sizeof(prefix) / 2;
    snprintf(err->message, sizeof(err->message), "%.*s: %.*s", (int)len, prefix,
             (int)(sizeof(old) - len - 3), old);
    return false;
}
