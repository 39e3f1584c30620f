/* Products with a matrix that stays in MXFP4, for processors with AVX-512 BF16.
 *
 * A fast matrix product packs its second operand into panels that fit in the cache before it multiplies. Here the
 * packing also dequantises. Weights are read as four bits and become bfloat16 when they are written to a panel, so that
 * bfloat16 weights are never in main memory. One byte of MXFP4 holds two neighbours along the input, which is the pair
 * that VDPBF16PS multiplies.
 *
 * out = x W^T (a layer's forward pass) or x W (its backward pass), W [outputs, inputs]. A low-rank update more_x more_w
 * is added as a few more steps of the same sum, and a bias as its first value. Sums are float32.
 *
 * The reference is ossia.kernels.reference.product: dequantise, then torch's own product.
 */
#include <stdlib.h>

#include "mxfp4.h"

typedef struct {
    const uint16_t *x; /* bfloat16 [rows, inputs], or [rows, outputs] when not transposed */
    const uint8_t *blocks, *scales;
    const uint16_t *more_x; /* bfloat16 [rows, rank], or NULL; rank is even */
    const uint16_t *more_w; /* bfloat16 [outputs, rank], or [rank, inputs] when not transposed */
    const uint16_t *bias;   /* bfloat16, one per output, or NULL; only when transposed */
    uint16_t *out;          /* bfloat16 [rows, columns], or NULL */
    float *into;            /* used if out is NULL: the rows times their factors are added to rows of it */
    const int64_t *places;  /* [rows]: the row of `into` for each row; all different */
    const float *factors;   /* [rows], or NULL for ones */
    int64_t rows, outputs, inputs, rank, transposed;
} product;

#ifdef X86
/* A strip of columns is four panels, which is a cache line of codes. DEPTH steps of the sum are packed at a time. They
 * are multiplied with BLOCK rows, TALL at a time. Packed weights and sums fill half a megabyte of the level-2 cache,
 * and the rows of a tile fill the level-1 cache. */
enum { LANES = 16, PANEL = 32, PANELS = 4, STRIP = PANEL * PANELS, TALL = 12, DEPTH = 960, BLOCK = 504, FEW = 4, AHEAD = 24, LAST = 2 };

/* Return the column of a panel that a lane holds (see pack_columns). */
static inline int column_of(int lane, int transposed) { return transposed ? lane : lane % LANES * 2 + lane / LANES; }

/* Return the bfloat16 of the codes in the low four bits of each 16-bit word. `codes` repeats its 16 entries. */
INLINE __m512i decoded(__m512i index, __m512i codes, __m512i shift) {
    const __m512i value = _mm512_permutexvar_epi16(index, codes);
    return _mm512_mask_add_epi16(value, _mm512_test_epi16_mask(value, _mm512_set1_epi16(0x7FFF)), value, shift);
}

/* Transpose up to 16 bytes of each of 16 rows: words[n] gets bytes 4n to 4n + 3 of all rows, one row per lane. */
INLINE void transposed(const uint8_t *rows, int64_t stride, int bytes, __m512i *words) {
    const __mmask16 some = (__mmask16)((1u << bytes) - 1);
    __m512i four[4];
    for (int n = 0; n < 4; n++) {
        const uint8_t *row = rows + n * stride;
        four[n] = _mm512_castsi128_si512(_mm_maskz_loadu_epi8(some, row));
        four[n] = _mm512_inserti32x4(four[n], _mm_maskz_loadu_epi8(some, row + 4 * stride), 1);
        four[n] = _mm512_inserti32x4(four[n], _mm_maskz_loadu_epi8(some, row + 8 * stride), 2);
        four[n] = _mm512_inserti32x4(four[n], _mm_maskz_loadu_epi8(some, row + 12 * stride), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(four[0], four[1]), b = _mm512_unpackhi_epi32(four[0], four[1]);
    const __m512i c = _mm512_unpacklo_epi32(four[2], four[3]), d = _mm512_unpackhi_epi32(four[2], four[3]);
    words[0] = _mm512_unpacklo_epi64(a, c);
    words[1] = _mm512_unpackhi_epi64(a, c);
    words[2] = _mm512_unpacklo_epi64(b, d);
    words[3] = _mm512_unpackhi_epi64(b, d);
}

/* For x W^T: pack one group of 32 inputs of 16 rows of W as 16 pairs of inputs, each [16 rows][2], PANEL lanes apart.
 * The low byte of each lane of `scales` is the scale of a row. */
INLINE void pack_rows(const uint8_t *blocks, __m512i scales, int64_t groups, __m512i codes, uint16_t *panel) {
    const __m512i low = _mm512_and_si512(scales, _mm512_set1_epi32(0xFF));
    const __m512i both = _mm512_or_si512(low, _mm512_slli_epi32(low, 16));
    const __m512i shift = _mm512_slli_epi16(_mm512_sub_epi16(both, _mm512_set1_epi16(127)), 7);
    __m512i words[4];
    transposed(blocks, groups * 16, 16, words);
    for (int word = 0; word < 4; word++) {
        __m512i bytes = words[word];
        for (int byte = 0; byte < 4; byte++) {
            const __m512i index = _mm512_mask_blend_epi16(0xAAAAAAAAu, bytes, _mm512_slli_epi32(bytes, 12));
            _mm512_storeu_si512(panel + (4 * word + byte) * 2 * PANEL, decoded(index, codes, shift));
            bytes = _mm512_srli_epi32(bytes, 8);
        }
    }
}

/* The same for groups `first` to `last` of 16 rows. */
INLINE void pack_half(const product *p, int64_t row, int64_t first, int64_t last, uint16_t *panel) {
    const int64_t groups = p->inputs / 32;
    const __m512i codes = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)CODES));
    for (int64_t group = first; group < last; group += 16) {
        const int count = last - group < 16 ? (int)(last - group) : 16;
        __m512i scales[4];
        transposed(p->scales + row * groups + group, groups, count, scales);
        for (int n = 0; n < count; n++) {
            const int64_t place = row * groups + group + n;
            pack_rows(p->blocks + place * 16, scales[n / 4], groups, codes,
                      panel + (group + n - first) * 16 * 2 * PANEL);
            scales[n / 4] = _mm512_srli_epi32(scales[n / 4], 8);
        }
    }
}

/* For x W: pack one group of 32 inputs of two rows of W as one pair of rows, [32 inputs][2]. The even inputs come
 * first, then the odd inputs. */
INLINE void pack_columns(const uint8_t *blocks, const uint8_t *scales, int64_t groups, __m512i codes, uint16_t *panel) {
    const uint32_t first = (uint32_t)(scales[0] - 127) * 128 & 0xFFFF;
    const uint32_t second = (uint32_t)(scales[groups] - 127) * 128 << 16;
    const __m512i low = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)blocks));
    const __m512i high = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(blocks + groups * 16)));
    const __m512i shift = _mm512_set1_epi32((int32_t)(first | second));
    /* The look-up repeats its 16 entries, so only four bits of each half matter, and the bits above them do not. */
    const __m512i even = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    _mm512_storeu_si512(panel, decoded(even, codes, shift));
    _mm512_storeu_si512(panel + 2 * LANES, decoded(_mm512_srli_epi32(even, 4), codes, shift));
}

/* Pack steps `from` to `to` of the sum, for `panels` panels from `column` on: [panel][pair][32 columns][2]. */
INLINE void pack(const product *p, int64_t column, int panels, int64_t from, int64_t to, uint16_t *packed) {
    const int64_t groups = p->inputs / 32, size = PANEL * (to - from);
    if (p->transposed) {
        for (int half = 0; half < 2 * panels; half++)
            pack_half(p, column + LANES * half, from / 32, to / 32, packed + half / 2 * size + half % 2 * 2 * LANES);
        return;
    }
    const __m512i codes = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)CODES));
    for (int64_t row = from; row < to; row += 2) {
        /* Each row is in another cache line, too far from the last one for the processor's own prefetching. */
        for (int64_t next = row + AHEAD; next < row + AHEAD + 2; next++) {
            const int64_t place = (next < p->outputs ? next : p->outputs - 1) * groups + column / 32;
            _mm_prefetch((const char *)(p->blocks + place * 16), _MM_HINT_T0);
            _mm_prefetch((const char *)(p->scales + place), _MM_HINT_T0);
        }
        for (int panel = 0; panel < panels; panel++) {
            const int64_t place = row * groups + column / 32 + panel;
            pack_columns(p->blocks + place * 16, p->scales + place, groups, codes,
                         packed + panel * size + (row - from) * PANEL);
        }
    }
}

/* The same for a matrix with scales at the ends of the range. */
static void pack_slowly(const product *p, int64_t column, int panels, int64_t from, int64_t to, uint16_t *packed) {
    const int64_t groups = p->inputs / 32, size = PANEL * (to - from);
    uint16_t values[32];
    for (int64_t lane = 0; p->transposed && lane < panels * PANEL; lane++)
        for (int64_t step = from; step < to; step += 32) {
            const int64_t place = (column + lane) * groups + step / 32;
            group_at_the_ends(p->blocks + place * 16, p->scales[place], values);
            for (int64_t i = 0; i < 32; i++)
                packed[lane / PANEL * size + (step - from + i) / 2 * 2 * PANEL + lane % PANEL * 2 + i % 2] = values[i];
        }
    for (int64_t row = from; !p->transposed && row < to; row++)
        for (int panel = 0; panel < panels; panel++) {
            const int64_t place = row * groups + column / 32 + panel;
            group_at_the_ends(p->blocks + place * 16, p->scales[place], values);
            for (int lane = 0; lane < PANEL; lane++)
                packed[panel * size + (row - from) / 2 * 2 * PANEL + 2 * lane + (row - from) % 2] =
                    values[column_of(lane, 0)];
        }
}

/* Return whether every code stays a normal number under every one of these scales. */
FUSED static int is_ordinary(const uint8_t *scales, int64_t count) {
    uint8_t least = 255, most = 0;
    for (int64_t n = 0; n < count; n++) {
        least = scales[n] < least ? scales[n] : least;
        most = scales[n] > most ? scales[n] : most;
    }
    return least >= LOWEST && most <= HIGHEST;
}

/* The same for the low-rank update. */
INLINE void pack_more(const product *p, int64_t column, int panels, int64_t columns, uint16_t *packed) {
    for (int panel = 0; panel < panels; panel++, packed += PANEL * p->rank, column += PANEL)
        for (int64_t step = 0; step < p->rank; step++)
            for (int lane = 0; lane < PANEL; lane++)
                packed[step / 2 * 2 * PANEL + 2 * lane + step % 2] =
                    p->transposed ? p->more_w[(column + lane) * p->rank + step]
                                  : p->more_w[step * columns + column + column_of(lane, 0)];
}

/* sums [rows][STRIP] += x [rows][2 * pairs] times a panel. Callers pass a constant for `rows`. */
INLINE void tile(const int rows, const uint16_t *x, int64_t stride, const uint16_t *panel, int64_t pairs, float *sums) {
    __m512 sum[TALL][2];
#pragma GCC unroll 12
    for (int row = 0; row < rows; row++) {
        sum[row][0] = _mm512_loadu_ps(sums + row * STRIP);
        sum[row][1] = _mm512_loadu_ps(sums + row * STRIP + LANES);
    }
    for (int64_t pair = 0; pair < pairs; pair++) {
        const __m512bh first = (__m512bh)_mm512_loadu_si512(panel + pair * 2 * PANEL);
        const __m512bh second = (__m512bh)_mm512_loadu_si512(panel + pair * 2 * PANEL + 2 * LANES);
#pragma GCC unroll 12
        for (int row = 0; row < rows; row++) {
            int32_t two;
            memcpy(&two, x + row * stride + 2 * pair, 4);
            const __m512bh value = (__m512bh)_mm512_set1_epi32(two);
            sum[row][0] = _mm512_dpbf16_ps(sum[row][0], value, first);
            sum[row][1] = _mm512_dpbf16_ps(sum[row][1], value, second);
        }
    }
#pragma GCC unroll 12
    for (int row = 0; row < rows; row++) {
        _mm512_storeu_ps(sums + row * STRIP, sum[row][0]);
        _mm512_storeu_ps(sums + row * STRIP + LANES, sum[row][1]);
    }
}

#define CASE(n) case n: tile(n, x, stride, panel, pairs, sums); break;
FUSED static void some_rows(int rows, const uint16_t *x, int64_t stride, const uint16_t *panel, int64_t pairs,
                            float *sums) {
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
    }
}

/* Multiply all rows, in tiles of nearly the same height, because a tile of one row takes as long as one of three. */
FUSED static void tiles(int64_t rows, const uint16_t *x, int64_t stride, const uint16_t *packed, int panels,
                        int64_t pairs, float *sums) {
    for (int64_t left = (rows + TALL - 1) / TALL; left > 0; left--) {
        const int height = (int)((rows + left - 1) / left);
        for (int panel = 0; panel < panels; panel++)
            some_rows(height, x, stride, packed + panel * pairs * 2 * PANEL, pairs, sums + panel * PANEL);
        rows -= height, x += height * stride, sums += height * STRIP;
    }
}

/* Load the sums of 32 columns in the order of the columns. */
INLINE void ordered(const float *sums, int64_t transposed, __m512 *first, __m512 *second) {
    const __m512 a = _mm512_loadu_ps(sums), b = _mm512_loadu_ps(sums + LANES);
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    *first = transposed ? a : _mm512_permutex2var_ps(a, low, b);
    *second = transposed ? b : _mm512_permutex2var_ps(a, _mm512_add_epi32(low, _mm512_set1_epi32(8)), b);
}

INLINE void finish(const product *p, int64_t first, int64_t rows, int64_t column, int width, int64_t columns,
                   const float *sums) {
    for (int64_t row = 0; row < rows; row++)
        for (int i = 0; i < width; i += PANEL) {
            __m512 low, high;
            ordered(sums + row * STRIP + i, p->transposed, &low, &high);
            if (p->out) {
                uint16_t *to = p->out + (first + row) * columns + column + i;
                _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
            } else {
                float *to = p->into + p->places[first + row] * columns + column + i;
                const __m512 factor = _mm512_set1_ps(p->factors ? p->factors[first + row] : 1.0f);
                _mm512_storeu_ps(to, _mm512_fmadd_ps(factor, low, _mm512_loadu_ps(to)));
                _mm512_storeu_ps(to + LANES, _mm512_fmadd_ps(factor, high, _mm512_loadu_ps(to + LANES)));
            }
        }
}

/* Compute all rows of one strip of columns. Scratch space: `packed` has STRIP * DEPTH values (STRIP * rank if that is
 * more), `sums` has BLOCK * STRIP. */
FUSED static void strip(const product *p, int ordinary, int64_t column, int panels, uint16_t *packed, float *sums) {
    const int64_t depth = p->transposed ? p->inputs : p->outputs, columns = p->transposed ? p->outputs : p->inputs;
    const int width = panels * PANEL;
    for (int64_t first = 0; first < p->rows; first += BLOCK) {
        const int64_t rows = p->rows - first < BLOCK ? p->rows - first : BLOCK;
        for (int64_t row = 0; row < rows; row++)
            for (int i = 0; i < STRIP; i++)
                sums[row * STRIP + i] = p->bias && i < width ? widened(p->bias[column + i]) : 0.0f;
        for (int64_t from = 0; from < depth; from += DEPTH) {
            const int64_t to = depth - from < DEPTH ? depth : from + DEPTH;
            if (ordinary)
                pack(p, column, panels, from, to, packed);
            else
                pack_slowly(p, column, panels, from, to, packed);
            tiles(rows, p->x + first * depth + from, depth, packed, panels, (to - from) / 2, sums);
        }
        if (p->rank) {
            pack_more(p, column, panels, columns, packed);
            tiles(rows, p->more_x + first * p->rank, p->rank, packed, panels, p->rank / 2, sums);
        }
        finish(p, first, rows, column, width, columns, sums);
    }
}

/* Compute one output of a few rows. Nothing is packed; each group of weights is used directly after decoding. */
FUSED static void single(const product *p, int64_t output) {
    const int64_t groups = p->inputs / 32;
    const uint8_t *blocks = p->blocks + output * groups * 16, *scales = p->scales + output * groups;
    __m512 sum[FEW];
    for (int row = 0; row < p->rows; row++) sum[row] = _mm512_setzero_ps();
    for (int64_t group = 0; group < groups; group++) {
        uint16_t values[32];
        if (scales[group] < LOWEST || scales[group] > HIGHEST)
            group_at_the_ends(blocks + group * 16, scales[group], values);
        else
            group_avx512(blocks + group * 16, scales[group], values);
        const __m512bh weights = (__m512bh)_mm512_loadu_si512(values);
        for (int row = 0; row < p->rows; row++)
            sum[row] = _mm512_dpbf16_ps(
                sum[row], (__m512bh)_mm512_loadu_si512(p->x + row * p->inputs + group * 32), weights);
    }
    for (int row = 0; row < p->rows; row++) {
        float total = _mm512_reduce_add_ps(sum[row]) + (p->bias ? widened(p->bias[output]) : 0.0f);
        for (int64_t step = 0; step < p->rank; step++)
            total += widened(p->more_x[row * p->rank + step]) * widened(p->more_w[output * p->rank + step]);
        if (p->out)
            p->out[row * p->outputs + output] =
                (uint16_t)_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(total)), 0);
        else
            p->into[p->places[row] * p->outputs + output] += total * (p->factors ? p->factors[row] : 1.0f);
    }
}
#endif

/* Return whether this processor can run `ossia_product_bf16`. */
int ossia_product_supported(void) { return has_bf16(); }

int64_t ossia_product_size(void) { return sizeof(product); }

/* Returns 0, or 1 if memory was not available (then nothing is written). Outputs and inputs are multiples of 32. */
int ossia_product_bf16(const product *p) {
#ifdef X86
    const int64_t columns = p->transposed ? p->outputs : p->inputs;
    if (p->transposed && p->rows <= FEW) {
#pragma omp parallel for schedule(static)
        for (int64_t output = 0; output < p->outputs; output++) single(p, output);
        return 0;
    }
    const int64_t tall = p->rows < BLOCK ? p->rows : BLOCK, deep = p->rank > DEPTH ? p->rank : DEPTH;
    const int64_t wide = columns / STRIP > LAST ? columns / STRIP - LAST : 0, narrow = columns / PANEL - wide * PANELS;
    const int ordinary = is_ordinary(p->scales, p->outputs * p->inputs / 32);
    int failed = 0;
#pragma omp parallel
    {
        uint16_t *packed = aligned_alloc(64, sizeof(uint16_t) * STRIP * deep);
        float *sums = aligned_alloc(64, sizeof(float) * STRIP * tall);
        if (!packed || !sums) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
            /* The last columns are distributed in single panels, so that threads do not wait long for each other. */
#pragma omp for schedule(dynamic, 1)
            for (int64_t unit = 0; unit < wide + narrow; unit++)
                strip(p, ordinary, (unit < wide ? unit * PANELS : wide * PANELS + unit - wide) * PANEL, unit < wide ? PANELS : 1,
                      packed, sums);
        }
        free(packed);
        free(sums);
    }
    return failed;
#else
    (void)p;
    return 1;
#endif
}
