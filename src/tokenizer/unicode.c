#include "unicode.h"

#include <string.h>

enum { BLOCKS_MAX = 1024 }; /* distinct blocks; Unicode 16.0 needs about 400 */

typedef struct TableBuilder {
    UnicodeTable *table;
    size_t run, left;                      /* the current run and how much of it is left */
    size_t count;                          /* blocks stored */
    uint16_t uniform[UNICODE_RUN_CLASSES]; /* block that is wholly of this class, plus one; or 0 */
} TableBuilder;

static void next_run(TableBuilder *b)
{
    if (b->left == 0 && b->run + 1 < unicode_run_count)
        b->left = unicode_runs[++b->run] / UNICODE_RUN_CLASSES;
}

/* Most blocks lie wholly inside one run and are shared by class; the mixed ones are hardly ever
 * equal. */
static bool add_block(TableBuilder *b, uint16_t *index)
{
    next_run(b);
    size_t class_at = unicode_runs[b->run] % UNICODE_RUN_CLASSES;
    bool uniform = b->left >= UNICODE_BLOCK;
    if (uniform && b->uniform[class_at]) {
        *index = (uint16_t)(b->uniform[class_at] - 1);
        b->left -= UNICODE_BLOCK;
        return true;
    }
    if (b->count == BLOCKS_MAX)
        return false;
    *index = (uint16_t)b->count++;
    if (uniform)
        b->uniform[class_at] = (uint16_t)b->count;
    uint16_t *block = b->table->classes + (size_t)*index * UNICODE_BLOCK;
    for (size_t i = 0; i < UNICODE_BLOCK; i++, b->left--) {
        next_run(b);
        block[i] = unicode_run_classes[unicode_runs[b->run] % UNICODE_RUN_CLASSES];
    }
    return true;
}

bool unicode_table_init(UnicodeTable *table, Error *err)
{
    TableBuilder builder = {.table = table, .left = unicode_runs[0] / UNICODE_RUN_CLASSES};
    table->classes = memory_allocate_array(BLOCKS_MAX * UNICODE_BLOCK, sizeof(uint16_t));
    if (!table->classes)
        return error_no_memory(err, "character classes");
    for (size_t i = 0; i < UNICODE_BLOCKS; i++) {
        if (!add_block(&builder, &table->index[i])) {
            unicode_table_reset(table);
            return error_set(err, ERROR_INTERNAL, "character classes: too many blocks");
        }
    }
    return true;
}

void unicode_table_reset(UnicodeTable *table)
{
    memory_free(table->classes);
    table->classes = NULL;
}
