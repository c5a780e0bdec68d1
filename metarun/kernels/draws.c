/* What SplitMix64 does to each word of its stream (Steele et al., 2014), in one pass.
 *
 * Whole numbers, and a product by a power of two: to the bit what torch's operations give.
 */
#include <stdint.h>

static inline uint64_t mixed(uint64_t word) {
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9u;
    word = (word ^ (word >> 27)) * 0x94D049BB133111EBu;
    return word ^ (word >> 31);
}

void mix(uint64_t *words, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        words[i] = mixed(words[i]);
}

/* Mix, and take the upper 53 bits as a double in [0, 1). */
void fractions(const uint64_t *words, double *out, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        out[i] = (double)(mixed(words[i]) >> 11) * 0x1p-53;
}
