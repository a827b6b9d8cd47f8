// The C library's header, and the one atomic word that Swift 5.9 has no type for.
#ifndef VALKYRIE_SWIFT_SHIM_H
#define VALKYRIE_SWIFT_SHIM_H

#include <stdint.h>
#include <valkyrie.h>

static inline uint64_t valkyrie_swift_exchange(uint64_t *word, uint64_t value) {
    return __atomic_exchange_n(word, value, __ATOMIC_ACQ_REL);
}

#endif
