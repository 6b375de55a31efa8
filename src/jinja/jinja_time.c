/* strftime_now: the present, or the instant the caller fixed, in local time through strftime. */
#include "jinja_machine.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* Two or four digits at text[at]; -1 when they are not. */
static int read_digits(const char *text, size_t at, size_t count)
{
    int value = 0;
    for (size_t i = 0; i < count; i++) {
        if (text[at + i] < '0' || text[at + i] > '9')
            return -1;
        value = value * 10 + (text[at + i] - '0');
    }
    return value;
}

/* "2026-01-02T03:04:05", anything after the seconds ignored. */
static bool read_time(const char *text, struct tm *out)
{
    static const char shape[] = "dddd-dd-ddTdd:dd:dd";
    static const unsigned char month_days[] = {31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    for (size_t i = 0; i < sizeof(shape) - 1; i++) {
        bool fits = shape[i] == 'd' ? text[i] >= '0' && text[i] <= '9'
                                    : text[i] == shape[i] || (shape[i] == 'T' && text[i] == ' ');
        if (!fits)
            return false;
    }
    memset(out, 0, sizeof(*out));
    out->tm_year = read_digits(text, 0, 4) - 1900;
    out->tm_mon = read_digits(text, 5, 2) - 1;
    out->tm_mday = read_digits(text, 8, 2);
    out->tm_hour = read_digits(text, 11, 2);
    out->tm_min = read_digits(text, 14, 2);
    out->tm_sec = read_digits(text, 17, 2);
    out->tm_isdst = -1;
    if (out->tm_mon < 0 || out->tm_mon > 11 || out->tm_mday < 1 ||
        out->tm_mday > month_days[out->tm_mon] || out->tm_hour > 23 || out->tm_min > 59 ||
        out->tm_sec > 59)
        return false;
    /* Fills in the weekday and the day of the year; the given fields stay, or the time does not
     * exist. */
    struct tm copy = *out;
    if (mktime(&copy) == (time_t)-1 && copy.tm_yday == 0)
        return true;
    out->tm_wday = copy.tm_wday;
    out->tm_yday = copy.tm_yday;
    out->tm_isdst = copy.tm_isdst;
    return true;
}

static bool get_now(JinjaMachine *m, struct tm *out)
{
    if (m->context->now_text) {
        if (read_time(m->context->now_text, out))
            return true;
        return jinja_fail(m, "strftime_now: the given time is not of the form 2026-01-02T03:04:05");
    }
    time_t seconds = (time_t)m->context->now_unix_seconds;
    if (seconds == 0)
        seconds = (time_t)(clock_unix_milliseconds() / 1000);
    return localtime_r(&seconds, out) || jinja_fail(m, "strftime_now: the time has no local form");
}

/* The time has no zone and no fraction in Python's sense: %z and %Z are empty, %f is zeros. */
static size_t copy_format(Slice given, char *to)
{
    size_t len = 0;
    for (size_t i = 0; i < given.len; i++) {
        char next = given.ptr[i] == '%' && i + 1 < given.len ? given.ptr[i + 1] : '\0';
        if (next == 'z' || next == 'Z') {
            i++;
        } else if (next == 'f') {
            memcpy(to + len, "000000", 6);
            len += 6;
            i++;
        } else {
            to[len++] = given.ptr[i];
            if (next != '\0')
                to[len++] = given.ptr[++i];
        }
    }
    return len;
}

bool jinja_strftime_now(JinjaMachine *m, const JinjaCall *call, JinjaValue *out)
{
    enum { FORMAT_MAX = 1024, TEXT_MAX = 4096 };
    char format[FORMAT_MAX * 3 + 2], text[TEXT_MAX];
    struct tm now;
    Slice given;
    if (!jinja_arg_string(m, call, 0, SLICE_EMPTY, &given) || !get_now(m, &now))
        return false;
    if (given.len > FORMAT_MAX || (given.len > 0 && memchr(given.ptr, '\0', given.len)))
        return jinja_fail(m, "strftime_now: format too long or with a NUL");
    /* strftime returns 0 both for an empty result and for one that does not fit: the added
     * character tells them apart. */
    memcpy(format + copy_format(given, format), "x", 2);
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#endif
    size_t len = strftime(text, sizeof(text), format, &now);
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
    if (len == 0)
        return jinja_fail(m, "strftime_now: result exceeds %d bytes", (int)TEXT_MAX);
    if (!utf8_is_valid((Slice){text, len - 1}))
        return jinja_fail(m, "strftime_now: result is not valid UTF-8");
    return jinja_string_copy(m, (Slice){text, len - 1}, out);
}
