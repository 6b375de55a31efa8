/* gguf_import on a real file, for trying and timing it: import_driver FILE.gguf DIRECTORY. */
#include "weights.h"

#include <stdio.h>

static void print_line(void *context, const char *line)
{
    (void)context;
    puts(line);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: import_driver FILE.gguf DIRECTORY\n");
        return 2;
    }
    Error err = {0};
    GgufImportReport report;
    double start = clock_monotonic_seconds();
    if (!gguf_import(argv[1], argv[2], print_line, NULL, &report, &err)) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    printf("%zu exact, %zu converted, worst %.3e (%s), %zu bytes, %.2f s, peak %zu MB\n",
           report.exact_tensors, report.converted_tensors, report.worst_relative_error,
           report.worst_tensor, report.bytes_written, clock_monotonic_seconds() - start,
           process_peak_resident_bytes() >> 20);
    return 0;
}
