/* The safetensors file that the importer writes: header last.
 *
 * A header's length is not known before the tensors' types are (scales may turn out float32), so
 * its greatest length is reserved and the JSON, once known, is padded with spaces, as the format
 * allows. Data are written at their place with pwrite, in any order; the file gets its name when it
 * is complete. */
#include "gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- Output file ---- */

static bool fail_io(const GgufOutput *output, const char *action, Error *err)
{
    return error_set(err, ERROR_IO, "%s: cannot %s: %s", output->temporary, action,
                     strerror(errno));
}

bool gguf_output_open(GgufOutput *output, const char *directory, size_t header_size, Error *err)
{
    if (!path_join(output->path, sizeof(output->path), directory, "model.safetensors", err))
        return false;
    snprintf(output->temporary, sizeof(output->temporary), "%s.partial", output->path);
    output->fd = open(output->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (output->fd < 0)
        return fail_io(output, "create", err);
    output->header_size = header_size;
    return true;
}

bool gguf_output_write(const GgufOutput *output, const void *bytes, size_t size, size_t at,
                       Error *err)
{
    const uint8_t *from = bytes;
    while (size > 0) {
        ssize_t n = pwrite(output->fd, from, size, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_io(output, "write", err);
        from += n;
        at += (size_t)n;
        size -= (size_t)n;
    }
    return true;
}

size_t gguf_output_data_at(const GgufOutput *output, size_t offset)
{
    return 8 + output->header_size + offset;
}

/* Enters a tensor whose data take size bytes from the current end; *begin says where. */
bool gguf_output_add(GgufOutput *output, GgufOutputTensor tensor, size_t size, size_t *begin,
                     Error *err)
{
    if (!memory_grow_array((void **)&output->tensors, output->n_tensors, &output->capacity,
                           sizeof(tensor)))
        return error_no_memory(err, "the output's tensor table");
    tensor.begin = output->data_size;
    if (!size_add(tensor.begin, size, &tensor.end))
        return error_set(err, ERROR_LIMIT, "%s: too large", output->path);
    *begin = tensor.begin;
    output->data_size = tensor.end;
    output->tensors[output->n_tensors++] = tensor;
    return true;
}

static void write_header_json(const GgufOutput *output, Buffer *out)
{
    JsonWriter w;
    json_writer_init(&w, out, 0);
    json_write_object_begin(&w);
    json_write_key(&w, "__metadata__");
    json_write_object_begin(&w);
    json_write_key(&w, "format");
    json_write_text(&w, "mlx");
    json_write_object_end(&w);
    for (size_t i = 0; i < output->n_tensors; i++) {
        const GgufOutputTensor *tensor = &output->tensors[i];
        json_write_key(&w, tensor->name);
        json_write_object_begin(&w);
        json_write_key(&w, "dtype");
        json_write_text(&w, dtype_name(tensor->dtype));
        json_write_key(&w, "shape");
        json_write_array_begin(&w);
        for (uint32_t d = 0; d < tensor->n_dims; d++)
            json_write_uint(&w, tensor->shape[d]);
        json_write_array_end(&w);
        json_write_key(&w, "data_offsets");
        json_write_array_begin(&w);
        json_write_uint(&w, tensor->begin);
        json_write_uint(&w, tensor->end);
        json_write_array_end(&w);
        json_write_object_end(&w);
    }
    json_write_object_end(&w);
}

/* Fills in the header, padded with spaces to what was reserved, and gives the file its name. */
bool gguf_output_finish(GgufOutput *output, Error *err)
{
    Buffer header;
    buffer_init(&header, output->header_size);
    write_header_json(output, &header);
    bool ok = buffer_check(&header, "the safetensors header", err);
    if (ok) {
        size_t padding = output->header_size - header.len;
        char *spaces = buffer_extend(&header, padding);
        if (spaces && padding > 0)
            memset(spaces, ' ', padding);
        uint8_t length[8];
        for (size_t i = 0; i < sizeof(length); i++)
            length[i] = (uint8_t)((uint64_t)output->header_size >> (8 * i));
        ok = buffer_check(&header, "the safetensors header", err) &&
             gguf_output_write(output, length, sizeof(length), 0, err) &&
             gguf_output_write(output, header.ptr, header.len, sizeof(length), err);
    }
    buffer_reset(&header);
    if (!ok)
        return false;
    int fd = output->fd;
    output->fd = -1;
    if (close(fd) != 0 || rename(output->temporary, output->path) != 0) {
        fail_io(output, "finish", err);
        unlink(output->temporary);
        return false;
    }
    return true;
}

void gguf_output_abandon(GgufOutput *output)
{
    if (output->fd >= 0) {
        close(output->fd);
        unlink(output->temporary);
    }
    output->fd = -1;
    memory_free(output->tensors);
    output->tensors = NULL;
}
