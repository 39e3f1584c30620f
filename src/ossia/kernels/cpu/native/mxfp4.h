/* Shared code of the kernels: decoding MXFP4 (OCP Microscaling Formats 1.0), by code and by group of 32. */
#ifndef OSSIA_MXFP4_H
#define OSSIA_MXFP4_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define X86 1
/* For functions that need AVX-512 BF16. */
#define FUSED __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define INLINE static inline __attribute__((always_inline)) FUSED
#endif

/* For functions that are inlined, and so compiled again, in each function for one kind of processor. */
#if defined(__GNUC__)
#define ALWAYS static inline __attribute__((always_inline))
#else
#define ALWAYS static inline
#endif

/* 0, 0.5, 1, 1.5, 2, 3, 4, 6 as bfloat16, and the same with the sign set. */
static const uint16_t CODES[16] = {0x0000, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040, 0x4080, 0x40C0,
                                   0x8000, 0xBF00, 0xBF80, 0xBFC0, 0xC000, 0xC040, 0xC080, 0xC0C0};

/* The scale bytes for which every scaled code is a normal number: 0.5 is 2^-1, and 6 is below 2^3. */
enum { LOWEST = 3, HIGHEST = 251 };

ALWAYS float widened(uint16_t bits) {
    uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

/* Return the bfloat16 of a code under any scale byte. It is exact, except for values that become infinite or NaN. */
static inline uint16_t scaled(uint8_t code, uint8_t scale) {
    if (scale == 255) return 0x7FC0;
    float value = ldexpf(widened(CODES[code]), (int)scale - 127);
    uint32_t word;
    memcpy(&word, &value, 4);
    return (uint16_t)(word >> 16);
}

static inline void group_at_the_ends(const uint8_t *blocks, uint8_t scale, uint16_t *out) {
    for (int i = 0; i < 16; i++) {
        out[2 * i] = scaled(blocks[i] & 15, scale);
        out[2 * i + 1] = scaled(blocks[i] >> 4, scale);
    }
}

typedef void (*group_bf16)(const uint8_t *, uint8_t, uint16_t *);

static inline void group_scalar(const uint8_t *blocks, uint8_t scale, uint16_t *out) {
    uint16_t table[16], shift = (uint16_t)((scale - 127) * 128);
    for (int i = 0; i < 16; i++) table[i] = (CODES[i] & 0x7FFF) ? (uint16_t)(CODES[i] + shift) : CODES[i];
    for (int i = 0; i < 16; i++) {
        out[2 * i] = table[blocks[i] & 15];
        out[2 * i + 1] = table[blocks[i] >> 4];
    }
}

#ifdef X86
__attribute__((target("avx512f,avx512bw"))) static inline void group_avx512(const uint8_t *blocks, uint8_t scale,
                                                                     uint16_t *out) {
    const __m512i codes = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)CODES));
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)blocks));
    const __m512i low = _mm512_and_si512(bytes, _mm512_set1_epi32(15));
    const __m512i high = _mm512_slli_epi32(_mm512_and_si512(bytes, _mm512_set1_epi32(0xF0)), 12);
    const __m512i value = _mm512_permutexvar_epi16(_mm512_or_si512(low, high), codes);
    const __mmask32 some = _mm512_test_epi16_mask(value, _mm512_set1_epi16(0x7FFF));
    const __m512i shift = _mm512_set1_epi16((short)((scale - 127) * 128));
    _mm512_storeu_si512(out, _mm512_mask_add_epi16(value, some, value, shift));
}

__attribute__((target("avx2"))) static inline void group_avx2(const uint8_t *blocks, uint8_t scale, uint16_t *out) {
    const __m128i low_bytes = _mm_setr_epi8(0, 0, (char)0x80, (char)0xC0, 0, 0x40, (char)0x80, (char)0xC0, 0, 0,
                                            (char)0x80, (char)0xC0, 0, 0x40, (char)0x80, (char)0xC0);
    const __m128i high_bytes = _mm_setr_epi8(0, 0x3F, 0x3F, 0x3F, 0x40, 0x40, 0x40, 0x40, (char)0x80, (char)0xBF,
                                             (char)0xBF, (char)0xBF, (char)0xC0, (char)0xC0, (char)0xC0, (char)0xC0);
    const __m128i bytes = _mm_loadu_si128((const __m128i *)blocks), four = _mm_set1_epi8(15);
    const __m128i first = _mm_and_si128(bytes, four), second = _mm_and_si128(_mm_srli_epi16(bytes, 4), four);
    const __m256i shift = _mm256_set1_epi16((short)((scale - 127) * 128)), zero = _mm256_setzero_si256();
    const __m128i order[2] = {_mm_unpacklo_epi8(first, second), _mm_unpackhi_epi8(first, second)};
    for (int half = 0; half < 2; half++) {
        const __m128i low = _mm_shuffle_epi8(low_bytes, order[half]), high = _mm_shuffle_epi8(high_bytes, order[half]);
        const __m256i value = _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high));
        const __m256i size = _mm256_and_si256(value, _mm256_set1_epi16(0x7FFF));
        const __m256i none = _mm256_cmpeq_epi16(size, zero);
        _mm256_storeu_si256((__m256i *)(out + 16 * half), _mm256_add_epi16(value, _mm256_andnot_si256(none, shift)));
    }
}
#endif

/* Return the level of this processor: 2 AVX-512, 1 AVX2, 0 neither. */
static inline int best_level(void) {
#ifdef X86
    if (__builtin_cpu_supports("avx512bw")) return 2;
    if (__builtin_cpu_supports("avx2")) return 1;
#endif
    return 0;
}

/* Return whether this processor runs FUSED functions. */
static inline int has_bf16(void) {
#ifdef X86
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
    return 0;
#endif
}

static inline group_bf16 chosen(int level) {
    int most = best_level();
    if (level > most) level = most;
#ifdef X86
    if (level == 2) return group_avx512;
    if (level == 1) return group_avx2;
#endif
    return group_scalar;
}

#endif
