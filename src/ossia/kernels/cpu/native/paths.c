/* Attention of a forest of segments with learned sinks, for processors with AVX-512 BF16: heads of 64, bfloat16.
 *
 * A segment's tokens see their path: the ranges of its ancestors, then the segment itself up to the token. In windowed
 * layers they see only the last `window` tokens of it. Keys outside the path and the window are skipped and need no
 * mask, and no key is copied for a branch. Blocks of 64 keys are gathered from their places on the path while they are
 * packed into the order for VDPBF16PS. The query heads that share a key head are rows of one matrix.
 *
 * Forward: online softmax (Milakov and Gimelshein 2018; Dao et al. 2022, FlashAttention). The sink is its first logit,
 * without a value. Backward: Dao et al. 2022, algorithm 4, from the log-sum-exp that includes the sink. Sums are
 * float32. Probabilities and their gradients are rounded to bfloat16 before they are multiplied. A key of the block
 * that a query does not see has probability zero, but is multiplied as well. A NaN in it reaches the rows of the block.
 *
 * The reference is the dense form in ossia.model.attention, which uses ossia.kernels.reference.attention.
 */
#include <stdlib.h>

#include "bf16.h"

typedef struct {
    const uint16_t *q, *k, *v, *grad, *out_given; /* bfloat16; a head's row of 64 is contiguous */
    const float *sinks;                           /* [heads] */
    uint16_t *out;                                /* [tokens, heads, 64]; forward only */
    float *lse;                                   /* [heads, tokens]: natural log, with the sink */
    uint16_t *dq;                                 /* as q; backward only */
    float *dk, *dv;                               /* [parts, key heads, tokens, 64], zeros on entry; backward only */
    const int64_t *ranges;                        /* [.., 2]: each segment's path, its own range last */
    const int64_t *paths;                         /* [segments + 1]: where in `ranges` each path begins */
    const int64_t *chunks;                        /* [chunk_count, 3]: segment, first and last token (exclusive) */
    int64_t chunk_count, tokens, heads, key_heads, parts, window; /* window 0: none */
    int64_t q_head, q_token, k_head, k_token, v_head, v_token, g_head, g_token, o_head, o_token, dq_head, dq_token;
    float scale;
} attention;

#ifdef X86
enum { HEAD = WIDE, BLOCK = WIDE, MOST_ROWS = 256 };

/* The scratch space of a thread. Rows are a chunk's tokens times the query heads of a group, token by token. */
typedef struct {
    uint16_t q[MOST_ROWS][HEAD], grad[MOST_ROWS][HEAD];
    uint16_t q_pairs[MOST_ROWS / 2][PAIR], grad_pairs[MOST_ROWS / 2][PAIR];
    uint16_t k_across[HEAD / 2][PAIR], v_across[HEAD / 2][PAIR]; /* pairs along the head, one key per lane */
    uint16_t k_pairs[BLOCK / 2][PAIR], v_pairs[BLOCK / 2][PAIR]; /* pairs of keys, one place of the head per lane */
    uint16_t slope[MOST_ROWS][BLOCK];
    uint16_t weight_pairs[MOST_ROWS / 2][PAIR], slope_pairs[MOST_ROWS / 2][PAIR];
    float sum[MOST_ROWS][HEAD];
    float total[MOST_ROWS][LANES], most[MOST_ROWS], lse[MOST_ROWS], delta[MOST_ROWS];
} scratch;

/* A chunk: consecutive tokens of a segment, with the query heads of one key head. */
typedef struct {
    const int64_t *ranges;
    int64_t first, tokens, rows, group, head; /* first flat token; rows = tokens * group; first query head */
    int64_t place;                            /* place of the first token on the path */
    int64_t window;
} chunk;

/* The keys of a path, in blocks of 64. */
typedef struct {
    const int64_t *range;
    int64_t next;          /* flat place of the next key */
    int64_t at, end;       /* places on the path: of the next key, and after the last key */
    int64_t flat[BLOCK];   /* flat places of the block's keys */
    int64_t start, count;  /* the block's first place on the path, and its number of keys */
} keys;

INLINE chunk chunk_of(const attention *p, int64_t number, int64_t key_head) {
    const int64_t *own = p->chunks + 3 * number, group = p->heads / p->key_heads;
    const int64_t *ranges = p->ranges + 2 * p->paths[own[0]], *last = p->ranges + 2 * (p->paths[own[0] + 1] - 1);
    int64_t place = own[1] - last[0];
    for (const int64_t *range = ranges; range < last; range += 2) place += range[1] - range[0];
    return (chunk){ranges, own[1], own[2] - own[1], (own[2] - own[1]) * group, group, key_head * group, place,
                   p->window ? p->window : place + own[2]};
}

INLINE keys keys_of(const chunk *c) {
    keys k = {.range = c->ranges, .end = c->place + c->tokens};
    k.at = c->place - c->window + 1 > 0 ? c->place - c->window + 1 : 0;
    int64_t skip = k.at;
    while (skip >= k.range[1] - k.range[0]) skip -= k.range[1] - k.range[0], k.range += 2;
    k.next = k.range[0] + skip;
    return k;
}

INLINE int next_block(keys *k) {
    k->start = k->at;
    k->count = k->end - k->at < BLOCK ? k->end - k->at : BLOCK;
    for (int64_t n = 0; n < k->count; n++) {
        while (k->next == k->range[1]) k->range += 2, k->next = k->range[0];
        k->flat[n] = k->next++;
    }
    k->at += k->count;
    return k->count > 0;
}

/* Set the range of rows that see any key of the block, widened to multiples of TALL. */
INLINE void rows_of(const chunk *c, const keys *k, int64_t *first, int64_t *last) {
    const int64_t from = k->start > c->place ? k->start - c->place : 0;
    const int64_t reach = k->start + k->count - 1 + c->window - c->place; /* the first token too far behind */
    *first = from * c->group / TALL * TALL;
    *last = ((reach < c->tokens ? reach : c->tokens) * c->group + TALL - 1) / TALL * TALL;
}

/* Return the keys of the block that a row sees, one bit each. */
INLINE uint64_t seen(const chunk *c, const keys *k, int64_t row) {
    if (row >= c->rows) return 0;
    const int64_t place = c->place + row / c->group;
    int64_t low = place - c->window + 1 - k->start, high = place + 1 - k->start;
    low = low > 0 ? low : 0, high = high < k->count ? high : k->count;
    if (high <= low) return 0;
    return (high - low == 64 ? ~0ull : (1ull << (high - low)) - 1) << low;
}

/* Pack a block's keys as pairs along the head, one key per lane. Keys that do not exist are zeros. */
INLINE void pack_across(const uint16_t *x, int64_t stride, const keys *k, uint16_t out[HEAD / 2][PAIR]) {
    for (int lane = 0; lane < BLOCK; lane += LANES) {
        const uint16_t *rows[LANES];
        for (int n = 0; n < LANES; n++) rows[n] = lane + n < k->count ? x + k->flat[lane + n] * stride : NULL;
        for (int word = 0; word < HEAD / 2; word += 16) transpose(rows, word, out[word] + 2 * lane, PAIR);
    }
}

INLINE void pack_pairs(const uint16_t *x, int64_t stride, const keys *k, uint16_t out[BLOCK / 2][PAIR]) {
    for (int n = 0; n < BLOCK; n += 2)
        pair_up(n < k->count ? x + k->flat[n] * stride : NULL, n + 1 < k->count ? x + k->flat[n + 1] * stride : NULL,
                out[n / 2]);
}

/* Return exp(x) to about one unit in the last place: 2^n times a polynomial (Cephes, expf). A NaN stays a NaN. */
INLINE __m512 exponential(__m512 given) {
    const __m512 x = _mm512_max_ps(_mm512_set1_ps(-110.0f), given); /* below this the result is zero */
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.9875691500e-4f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.3981999507e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(8.3334519073e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(4.1665795894e-2f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.6666665459e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.0000001201e-1f));
    y = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(y, r), r, r), _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, n);
}

/* Add a product to rows of float32. */
INLINE void add_product(const uint16_t *a, int64_t row_stride, int64_t pair_stride, const uint16_t *b, int64_t pairs,
                        float *const rows[TALL]) {
    __m512 sum[TALL][LINES];
#pragma GCC unroll 4
    for (int row = 0; row < TALL; row++)
#pragma GCC unroll 4
        for (int n = 0; n < LINES; n++) sum[row][n] = _mm512_loadu_ps(rows[row] + n * LANES);
    multiply(a, row_stride, pair_stride, b, pairs, sum);
#pragma GCC unroll 4
    for (int row = 0; row < TALL; row++)
#pragma GCC unroll 4
        for (int n = 0; n < LINES; n++) _mm512_storeu_ps(rows[row] + n * LANES, sum[row][n]);
}

/* Copy the heads of a chunk's tokens to rows, followed by up to TALL - 1 rows of zeros. */
INLINE void copy_rows(const uint16_t *x, int64_t head, int64_t token, const chunk *c, uint16_t rows[][HEAD]) {
    for (int64_t row = 0; row < c->rows; row++)
        memcpy(rows[row], x + (c->head + row % c->group) * head + (c->first + row / c->group) * token, 2 * HEAD);
    memset(rows[c->rows], 0, (size_t)((c->rows + TALL - 1) / TALL * TALL - c->rows) * sizeof(rows[0]));
}

/* Process one block for one tile of rows: update the maxima, the sums and the output so far. */
INLINE void forward_tile(const chunk *c, const keys *k, scratch *s, int64_t row, float scale) {
    __m512 logits[TALL][LINES];
    uint16_t weights[TALL][BLOCK];
    float most[LANES] = {0}, shrink[LANES];
    zero(logits);
    multiply(s->q[row], HEAD, 2, s->k_across[0], HEAD / 2, logits);
#pragma GCC unroll 4
    for (int n = 0; n < TALL; n++) {
        const uint64_t bits = seen(c, k, row + n);
#pragma GCC unroll 4
        for (int i = 0; i < LINES; i++)
            logits[n][i] = _mm512_mask_mul_ps(_mm512_set1_ps(-INFINITY), (__mmask16)(bits >> (LANES * i)), logits[n][i],
                                              _mm512_set1_ps(scale));
        const __m512 pair = _mm512_max_ps(_mm512_max_ps(logits[n][0], logits[n][1]),
                                          _mm512_max_ps(logits[n][2], logits[n][3]));
        const float found = _mm512_reduce_max_ps(pair);
        most[n] = found > s->most[row + n] ? found : s->most[row + n];
        shrink[n] = s->most[row + n] - most[n];
        s->most[row + n] = most[n];
    }
    for (int n = TALL; n < LANES; n++) shrink[n] = 0.0f;
    _mm512_storeu_ps(shrink, exponential(_mm512_loadu_ps(shrink)));
#pragma GCC unroll 4
    for (int n = 0; n < TALL; n++) {
#pragma GCC unroll 4
        for (int i = 0; i < LINES; i++) {
            logits[n][i] = exponential(_mm512_sub_ps(logits[n][i], _mm512_set1_ps(most[n])));
            _mm256_storeu_si256((__m256i *)(weights[n] + i * LANES), (__m256i)_mm512_cvtneps_pbh(logits[n][i]));
        }
        const __m512 sum = _mm512_add_ps(_mm512_add_ps(logits[n][0], logits[n][1]),
                                         _mm512_add_ps(logits[n][2], logits[n][3]));
        _mm512_storeu_ps(s->total[row + n],
                         _mm512_fmadd_ps(_mm512_loadu_ps(s->total[row + n]), _mm512_set1_ps(shrink[n]), sum));
    }
#pragma GCC unroll 4
    for (int n = 0; n < TALL; n++)
#pragma GCC unroll 4
        for (int i = 0; i < LINES; i++)
            logits[n][i] = _mm512_mul_ps(_mm512_loadu_ps(s->sum[row + n] + i * LANES), _mm512_set1_ps(shrink[n]));
    multiply(weights[0], BLOCK, 2, s->v_pairs[0], (k->count + 1) / 2, logits);
#pragma GCC unroll 4
    for (int n = 0; n < TALL; n++)
#pragma GCC unroll 4
        for (int i = 0; i < LINES; i++) _mm512_storeu_ps(s->sum[row + n] + i * LANES, logits[n][i]);
}

FUSED static void forward_chunk(const attention *p, int64_t number, int64_t key_head, scratch *s) {
    const chunk c = chunk_of(p, number, key_head);
    const int64_t padded = (c.rows + TALL - 1) / TALL * TALL;
    copy_rows(p->q, p->q_head, p->q_token, &c, s->q);
    memset(s->sum, 0, (size_t)padded * sizeof(s->sum[0]));
    memset(s->total, 0, (size_t)padded * sizeof(s->total[0]));
    for (int64_t row = 0; row < padded; row++) {
        const float sink = p->sinks[c.head + row % c.group];
        s->most[row] = sink < -1e30f ? -1e30f : sink; /* a sink of -inf means none */
        s->total[row][0] = 1.0f;
    }
    keys k = keys_of(&c);
    while (next_block(&k)) {
        int64_t first, last;
        pack_across(p->k + key_head * p->k_head, p->k_token, &k, s->k_across);
        pack_pairs(p->v + key_head * p->v_head, p->v_token, &k, s->v_pairs);
        rows_of(&c, &k, &first, &last);
        for (int64_t row = first; row < last; row += TALL) forward_tile(&c, &k, s, row, p->scale);
    }
    for (int64_t row = 0; row < c.rows; row++) {
        const int64_t token = c.first + row / c.group, head = c.head + row % c.group;
        const float total = _mm512_reduce_add_ps(_mm512_loadu_ps(s->total[row]));
        uint16_t *out = p->out + (token * p->heads + head) * HEAD;
        for (int i = 0; i < HEAD; i += LANES)
            _mm256_storeu_si256((__m256i *)(out + i),
                                (__m256i)_mm512_cvtneps_pbh(_mm512_div_ps(_mm512_loadu_ps(s->sum[row] + i), _mm512_set1_ps(total))));
        p->lse[head * p->tokens + token] = s->most[row] + logf(total);
    }
}

/* Return two rows of 16 bfloat16 as pairs. */
INLINE __m512i paired(__m256i first, __m256i second) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

/* Compute the probabilities of one tile and one block, the gradients of its logits, and their part in the gradients of
 * the queries. */
INLINE void backward_tile(const chunk *c, const keys *k, scratch *s, int64_t row, float scale) {
    __m512 values[TALL][LINES];
    float weights[TALL][BLOCK];
    zero(values);
    multiply(s->q[row], HEAD, 2, s->k_across[0], HEAD / 2, values);
#pragma GCC unroll 4
    for (int n = 0; n < TALL; n++) {
        const uint64_t bits = seen(c, k, row + n);
#pragma GCC unroll 4
        for (int i = 0; i < LINES; i++) {
            const __m512 logit = _mm512_fmsub_ps(values[n][i], _mm512_set1_ps(scale), _mm512_set1_ps(s->lse[row + n]));
            values[n][i] = _mm512_maskz_mov_ps((__mmask16)(bits >> (LANES * i)), exponential(logit));
            _mm512_storeu_ps(weights[n] + i * LANES, values[n][i]);
        }
    }
#pragma GCC unroll 2
    for (int n = 0; n < TALL; n += 2)
#pragma GCC unroll 4
        for (int i = 0; i < LINES; i++)
            _mm512_storeu_si512(s->weight_pairs[(row + n) / 2] + i * 2 * LANES,
                                paired((__m256i)_mm512_cvtneps_pbh(values[n][i]), (__m256i)_mm512_cvtneps_pbh(values[n + 1][i])));
    zero(values);
    multiply(s->grad[row], HEAD, 2, s->v_across[0], HEAD / 2, values);
#pragma GCC unroll 2
    for (int n = 0; n < TALL; n += 2)
#pragma GCC unroll 4
        for (int i = 0; i < LINES; i++) {
            __m256i both[2];
#pragma GCC unroll 2
            for (int m = 0; m < 2; m++) {
                const __m512 change = _mm512_sub_ps(values[n + m][i], _mm512_set1_ps(s->delta[row + n + m]));
                const __m512 weight = _mm512_mul_ps(_mm512_loadu_ps(weights[n + m] + i * LANES), _mm512_set1_ps(scale));
                both[m] = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(change, weight));
                _mm256_storeu_si256((__m256i *)(s->slope[row + n + m] + i * LANES), both[m]);
            }
            _mm512_storeu_si512(s->slope_pairs[(row + n) / 2] + i * 2 * LANES, paired(both[0], both[1]));
        }
    float *const sums[TALL] = {s->sum[row], s->sum[row + 1], s->sum[row + 2], s->sum[row + 3]};
    add_product(s->slope[row], BLOCK, 2, s->k_pairs[0], BLOCK / 2, sums);
}

/* Add the contributions of rows `first` to `last` to the gradients of a block's keys: weights^T [64, rows] times rows
 * of 64, for four keys at a time. */
INLINE void add_to_keys(const keys *k, uint16_t weight_pairs[][PAIR], uint16_t pairs[][PAIR], int64_t first, int64_t last,
                        float *total) {
    float none[HEAD];
    for (int64_t key = 0; key < k->count; key += TALL) {
        float *rows[TALL];
        for (int64_t n = 0; n < TALL; n++) rows[n] = key + n < k->count ? total + k->flat[key + n] * HEAD : none;
        if (key + TALL > k->count) memset(none, 0, sizeof none);
        add_product(weight_pairs[first / 2] + 2 * key, 2, PAIR, pairs[first / 2], (last - first) / 2, rows);
    }
}

FUSED static void backward_chunk(const attention *p, int64_t number, int64_t key_head, float *dk, float *dv, scratch *s) {
    const chunk c = chunk_of(p, number, key_head);
    const int64_t padded = (c.rows + TALL - 1) / TALL * TALL;
    copy_rows(p->out_given, p->o_head, p->o_token, &c, s->q);
    copy_rows(p->grad, p->g_head, p->g_token, &c, s->grad);
    for (int64_t row = 0; row < padded; row++) {
        __m512 dot = _mm512_setzero_ps();
        for (int i = 0; i < HEAD; i += 2 * LANES)
            dot = _mm512_dpbf16_ps(dot, (__m512bh)_mm512_loadu_si512(s->q[row] + i), (__m512bh)_mm512_loadu_si512(s->grad[row] + i));
        s->delta[row] = _mm512_reduce_add_ps(dot);
        s->lse[row] = row < c.rows ? p->lse[(c.head + row % c.group) * p->tokens + c.first + row / c.group] : 0.0f;
    }
    copy_rows(p->q, p->q_head, p->q_token, &c, s->q);
    for (int64_t row = 0; row < padded; row += 2) {
        pair_up(s->q[row], s->q[row + 1], s->q_pairs[row / 2]);
        pair_up(s->grad[row], s->grad[row + 1], s->grad_pairs[row / 2]);
    }
    memset(s->sum, 0, (size_t)padded * sizeof(s->sum[0]));
    keys k = keys_of(&c);
    while (next_block(&k)) {
        int64_t first, last;
        pack_across(p->k + key_head * p->k_head, p->k_token, &k, s->k_across);
        pack_across(p->v + key_head * p->v_head, p->v_token, &k, s->v_across);
        pack_pairs(p->k + key_head * p->k_head, p->k_token, &k, s->k_pairs);
        rows_of(&c, &k, &first, &last);
        for (int64_t row = first; row < last; row += TALL) backward_tile(&c, &k, s, row, p->scale);
        add_to_keys(&k, s->weight_pairs, s->grad_pairs, first, last, dv);
        add_to_keys(&k, s->slope_pairs, s->q_pairs, first, last, dk);
    }
    for (int64_t row = 0; row < c.rows; row++) {
        uint16_t *to = p->dq + (c.head + row % c.group) * p->dq_head + (c.first + row / c.group) * p->dq_token;
        for (int i = 0; i < HEAD; i += LANES)
            _mm256_storeu_si256((__m256i *)(to + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(s->sum[row] + i)));
    }
}
#endif

/* Return the largest number of rows of a chunk (tokens times query heads of a group); 0 if this processor cannot run
 * these kernels. */
int64_t ossia_paths_rows(void) {
#ifdef X86
    return has_bf16() ? MOST_ROWS : 0;
#else
    return 0;
#endif
}

int64_t ossia_paths_size(void) { return sizeof(attention); }

#ifdef X86
static void forward_unit(const attention *p, int64_t unit, scratch *s) {
    const int64_t last = p->chunk_count * p->key_heads - 1; /* later chunks come first: their paths are mostly longer */
    forward_chunk(p, (last - unit) / p->key_heads, (last - unit) % p->key_heads, s);
}

/* Each part of a key head's gradients is summed by one thread. The caller adds up the parts. */
static void backward_unit(const attention *p, int64_t unit, scratch *s) {
    const int64_t size = p->tokens * HEAD;
    for (int64_t number = unit / p->key_heads; number < p->chunk_count; number += p->parts)
        backward_chunk(p, number, unit % p->key_heads, p->dk + unit * size, p->dv + unit * size, s);
}

/* Process every unit by the next free thread. Returns 0, or 1 if memory was not available (then nothing is done). */
static int each(const attention *p, int64_t units, void (*work)(const attention *, int64_t, scratch *)) {
    int failed = 0;
#pragma omp parallel
    {
        scratch *s = aligned_alloc(64, (sizeof(scratch) + 63) / 64 * 64);
        if (!s) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t unit = 0; unit < units; unit++) work(p, unit, s);
        }
        free(s);
    }
    return failed;
}
#endif

/* Chunks have at most ossia_paths_rows() rows. Returns 0, or 1 if memory was not available (nothing is then written) */
int ossia_paths_forward(const attention *p) {
#ifdef X86
    return each(p, p->chunk_count * p->key_heads, forward_unit);
#else
    (void)p;
    return 1;
#endif
}

/* The same for the gradients. */
int ossia_paths_backward(const attention *p) {
#ifdef X86
    return each(p, p->parts * p->key_heads, backward_unit);
#else
    (void)p;
    return 1;
#endif
}
