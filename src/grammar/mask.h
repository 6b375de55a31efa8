/* mask: the set of tokens that a machine's state allows, kept per state. */
#ifndef GRAMMAR_MASK_H
#define GRAMMAR_MASK_H

#include "machine.h"
#include "vocabulary.h"

enum { MASKS_MAX = 128 }; /* kept per grammar; the least recently used goes */

typedef struct MaskSlot {
    uint64_t *words; /* NULL until used */
    uint32_t state;
    bool is_used;
    uint64_t used_at;
} MaskSlot;

typedef struct Masks {
    const GrammarVocabulary *vocabulary;
    MaskSlot slots[MASKS_MAX];
    uint32_t *walk; /* [token_bytes_max + 1] states along the path of a walk */
    uint64_t clock;
} Masks;

bool masks_init(Masks *masks, const GrammarVocabulary *vocabulary, Error *err) WARN_UNUSED;
void masks_reset(Masks *masks);
/* Machine.drop_masks */
void masks_drop(void *masks);
/* The words of the root's state: [n_words], valid until the next call. */
bool masks_get(Masks *masks, Machine *m, const MachineRoot *root, const uint64_t **words,
               Error *err) WARN_UNUSED;
size_t masks_bytes(const Masks *masks);

#endif
