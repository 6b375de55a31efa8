#include "cli.h"

#include "weights.h"

#include <stdio.h>

static void print_progress(void *context, const char *line)
{
    const Arguments *arguments = context;
    if (arguments->verbose)
        fprintf(stderr, "%s\n", line);
}

int command_import(const Arguments *arguments)
{
    Error err = {0};
    GgufImportReport report = {0};
    /* The callback only reads; its context is untyped. */
    void *context = (void *)(uintptr_t)arguments;
    double start = clock_monotonic_seconds();
    if (!gguf_import(arguments->input, arguments->out, print_progress, context, &report, &err))
        return report_error(&err);
    fprintf(stderr, "%s: %zu tensors exact, %zu converted, %.1f MB written in %.1f s\n",
            arguments->out, report.exact_tensors, report.converted_tensors,
            (double)report.bytes_written * 1e-6, clock_monotonic_seconds() - start);
    if (report.converted_tensors > 0)
        fprintf(stderr, "largest relative error of a converted tensor: %.2e (%s)\n",
                report.worst_relative_error, report.worst_tensor);
    return EXIT_DONE;
}
