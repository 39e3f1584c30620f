/* The thin products of LoRA on bfloat16, for processors with AVX-512 BF16: one side is the rank.
 *
 * A general library prepares code for every new shape, and each expert has a different number of tokens at every step.
 * For products this small, the preparation takes several times as long as the product. Sums are float32. The reference
 * is ossia.kernels.reference.lowrank.
 */
#include <stdlib.h>

#include "bf16.h"

#ifdef X86
enum { ROWS = 8, DEEP = 512 };

/* sum [ROWS][16] += ROWS rows of words times rows of 16 pairs. Row n begins at rows[n], with a word every `stride`
 * values. */
INLINE void thin(const uint16_t *const rows[ROWS], int64_t stride, const uint16_t *pairs, int64_t count,
                 __m512 sum[ROWS]) {
    for (int64_t pair = 0; pair < count; pair++) {
        const __m512bh line = (__m512bh)_mm512_loadu_si512(pairs + pair * 2 * LANES);
#pragma GCC unroll 8
        for (int n = 0; n < ROWS; n++) {
            int32_t two;
            memcpy(&two, rows[n] + pair * stride, 4);
            sum[n] = _mm512_dpbf16_ps(sum[n], (__m512bh)_mm512_set1_epi32(two), line);
        }
    }
}

static inline __mmask16 lanes(int64_t count) { return (__mmask16)(count >= LANES ? 0xFFFF : (1 << count) - 1); }

/* Write up to 16 values of each of two rows as pairs. `some` has a bit for each value that exists. */
INLINE void pair_some(const uint16_t *first, const uint16_t *second, __mmask16 some, uint16_t *out) {
    const __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, first));
    const __m512i b = second ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, second)) : _mm512_setzero_si512();
    _mm512_storeu_si512(out, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
}

/* Write steps `from` to `from` + 32 of 16 columns of w as pairs. */
FUSED static void pack_narrow(const uint16_t *w, int64_t depth, int64_t rank, int64_t transposed, int64_t column,
                              int64_t from, uint16_t *out) {
    if (transposed) {
        const uint16_t *rows[LANES];
        for (int n = 0; n < LANES; n++) rows[n] = column + n < rank ? w + (column + n) * depth : NULL;
        transpose(rows, (int)(from / 2), out, 2 * LANES);
        return;
    }
    for (int64_t step = from; step < from + 32; step += 2, out += 2 * LANES)
        pair_some(w + step * rank + column, w + (step + 1) * rank + column, lanes(rank - column), out);
}

FUSED static void narrow_rows(const uint16_t *x, const uint16_t *packed, uint16_t *out, int64_t first, int64_t rows,
                              int64_t depth, int64_t rank, float scale) {
    const uint16_t *from[ROWS];
    for (int n = 0; n < ROWS; n++) from[n] = x + (first + n < rows ? first + n : rows - 1) * depth;
    for (int64_t column = 0; column < rank; column += LANES, packed += depth * LANES) {
        __m512 sum[ROWS];
        for (int n = 0; n < ROWS; n++) sum[n] = _mm512_setzero_ps();
        thin(from, 2, packed, depth / 2, sum);
        for (int n = 0; n < ROWS && first + n < rows; n++)
            _mm256_mask_storeu_epi16(out + (first + n) * rank + column, lanes(rank - column),
                                     (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(sum[n], _mm512_set1_ps(scale))));
    }
}

/* Write up to 16 columns of `a` as pairs. `some` has a bit for each column that exists. */
FUSED static void pack_panel(const uint16_t *a, int64_t rows, int64_t rank, __mmask16 some, uint16_t *out) {
    for (int64_t row = 0; row < rows; row += 2, out += 2 * LANES)
        pair_some(a + row * rank, row + 1 < rows ? a + (row + 1) * rank : NULL, some, out);
}

/* Compute a^T b, or its transpose, for 64 columns of b. a_pairs: [panels][pairs][16][2]. b_pairs: scratch space for
 * DEEP / 2 rows of pairs. */
FUSED static void outer_columns(const uint16_t *a_pairs, const uint16_t *b, uint16_t *b_pairs, float *out, int64_t column,
                                int64_t rows, int64_t rank, int64_t width, int64_t transposed) {
    const int64_t pairs = (rows + 1) / 2;
    for (int64_t from = 0; from < pairs; from += DEEP / 2) {
        const int64_t count = pairs - from < DEEP / 2 ? pairs - from : DEEP / 2;
        for (int64_t pair = 0; pair < count; pair++) {
            const uint16_t *row = b + 2 * (from + pair) * width + column;
            pair_up(row, 2 * (from + pair) + 1 < rows ? row + width : NULL, b_pairs + pair * PAIR);
        }
        for (int64_t panel = 0; panel < rank; panel += LANES) {
            const uint16_t *a = a_pairs + (panel / LANES * pairs + from) * 2 * LANES;
            for (int64_t d = 0; transposed && d < WIDE; d += ROWS) {
                const uint16_t *words[ROWS];
                float *to = out + (column + d) * rank + panel;
                const __mmask16 some = lanes(rank - panel);
                __m512 sum[ROWS];
                for (int n = 0; n < ROWS; n++) {
                    words[n] = b_pairs + 2 * (d + n);
                    sum[n] = from ? _mm512_maskz_loadu_ps(some, to + n * rank) : _mm512_setzero_ps();
                }
                thin(words, PAIR, a, count, sum);
                for (int n = 0; n < ROWS; n++) _mm512_mask_storeu_ps(to + n * rank, some, sum[n]);
            }
            for (int64_t r = 0; !transposed && r < LANES && panel + r < rank; r += TALL) {
                float *to = out + (panel + r) * width + column;
                __m512 sum[TALL][LINES];
                zero(sum);
                multiply(a + 2 * r, 2, 2 * LANES, b_pairs, count, sum);
                for (int n = 0; n < TALL && panel + r + n < rank; n++)
                    for (int i = 0; i < LINES; i++) {
                        float *place = to + n * width + i * LANES;
                        _mm512_storeu_ps(place, from ? _mm512_add_ps(_mm512_loadu_ps(place), sum[n][i]) : sum[n][i]);
                    }
            }
        }
    }
}
#endif

/* out [rows, rank] = scale * x [rows, depth] times w [depth, rank], or times w^T with w [rank, depth] if transposed.
 * All are bfloat16, and depth is a multiple of 32. Returns 0, or 1 if memory was not available. */
int ossia_narrow_bf16(const uint16_t *x, const uint16_t *w, uint16_t *out, int64_t rows, int64_t depth, int64_t rank,
                      int64_t transposed, float scale) {
#ifdef X86
    const int64_t panels = (rank + LANES - 1) / LANES, groups = depth / 32;
    uint16_t *packed = aligned_alloc(64, (size_t)(panels * depth * LANES) * 2);
    if (!packed) return 1;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < panels * groups; unit++)
            pack_narrow(w, depth, rank, transposed, unit / groups * LANES, unit % groups * 32,
                        packed + unit * 32 * LANES);
#pragma omp for schedule(static)
        for (int64_t first = 0; first < rows; first += ROWS)
            narrow_rows(x, packed, out, first, rows, depth, rank, scale);
    }
    free(packed);
    return 0;
#else
    (void)x, (void)w, (void)out, (void)rows, (void)depth, (void)rank, (void)transposed, (void)scale;
    return 1;
#endif
}

/* out = a^T b, float32 [rank, width], or its transpose. a [rows, rank] and b [rows, width] are bfloat16, and width is a
 * multiple of 64. Returns 0, or 1 if memory was not available (then nothing is written). */
int ossia_outer_bf16(const uint16_t *a, const uint16_t *b, float *out, int64_t rows, int64_t rank, int64_t width,
                     int64_t transposed) {
    int failed = 0;
#ifdef X86
    const int64_t panels = (rank + LANES - 1) / LANES, pairs = (rows + 1) / 2;
    uint16_t *a_pairs = aligned_alloc(64, (size_t)(panels * pairs * 2 * LANES) * 2);
    if (!a_pairs) return 1;
    for (int64_t panel = 0; panel < panels; panel++)
        pack_panel(a + panel * LANES, rows, rank, lanes(rank - panel * LANES), a_pairs + panel * pairs * 2 * LANES);
#pragma omp parallel
    {
        uint16_t *b_pairs = aligned_alloc(64, DEEP / 2 * PAIR * 2);
        if (!b_pairs) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
#pragma omp for schedule(static)
            for (int64_t column = 0; column < width; column += WIDE)
                outer_columns(a_pairs, b, b_pairs, out, column, rows, rank, width, transposed);
        }
        free(b_pairs);
    }
    free(a_pairs);
#else
    (void)a, (void)b, (void)out, (void)rows, (void)rank, (void)width, (void)transposed, failed = 1;
#endif
    return failed;
}
