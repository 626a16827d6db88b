/* Convolutions of small integers by AND and population count.
 *
 * An activation is zero + sum_i x_factor[i] bit_i, a weight lowest + sum_j w_factor[j] bit_j. The sum of
 * their products is made of the counts of the bits that both have, of a pixel's own bits, and of the weights'
 * sums. Pixels outside the image count 0. Every sum is an exact int32; it is multiplied by its scale in
 * double and rounded once to float.
 *
 * A term is a part of the kernel with a scale of its own: kernel positions [first, end) and bit planes
 * [first, end) of the weights. Most layers have one term. A layer's result is the sum of its terms in double.
 *
 * Tensors are channels last. The channels of a group fill words of 64 bits, the outputs of a group blocks of
 * 64; what is left over is 0. The file is compiled once for each instruction set: the flags choose the two
 * functions `count` and `reached`, and nothing else.
 */
#include <stdint.h>
#include <string.h>

#if defined(__AVX512VPOPCNTDQ__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define BLOCK 64
#define MOST_TAPS 256
#define MOST_PLANES 8
#define ABI 1 /* raised with every change of what build.py passes */

typedef struct {
    int64_t height, width, groups, x_planes, words;
    int64_t kernel_height, kernel_width, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
    int64_t result_height, result_width, outputs, blocks; /* outputs of a group */
    int64_t terms, w_planes, zero;
    const int32_t *x_factors;   /* (x_planes) */
    const int32_t *w_factors;   /* (w_planes) */
    const int32_t *spans;       /* (terms, 4): first and end position, first and end plane */
    const int32_t *lowest;      /* (terms) */
    const double *scales;       /* (terms, groups, blocks, 64) */
    const int32_t *weight_sums; /* (groups, blocks, terms, positions + 1, 64): of a position; of the term's */
    const uint64_t *weights;    /* (groups, blocks, w_planes, positions, words, 64) */
} Layer;

/* count: counts[o] = the bits that x and w[o] both have, over all taps and words; x[t]: words, w[t]: words x
 * 64. reached: bit i is y[i] >= t[i].
 */
#if defined(__AVX512VPOPCNTDQ__)

static inline void count(long taps, const uint64_t *const *x, const uint64_t *const *w, long words,
                         int32_t *counts)
{
    __m512i sums[8];
    for (int j = 0; j < 8; j++)
        sums[j] = _mm512_setzero_si512();
    for (long t = 0; t < taps; t++)
        for (long k = 0; k < words; k++) {
            __m512i bits = _mm512_set1_epi64((long long)x[t][k]);
            const uint64_t *other = w[t] + BLOCK * k;
            for (int j = 0; j < 8; j++) {
                __m512i both = _mm512_and_si512(bits, _mm512_loadu_si512(other + 8 * j));
                sums[j] = _mm512_add_epi64(sums[j], _mm512_popcnt_epi64(both));
            }
        }
    for (int j = 0; j < 8; j++)
        _mm256_storeu_si256((__m256i *)(counts + 8 * j), _mm512_cvtepi64_epi32(sums[j]));
}

static inline uint64_t reached(const float *y, const float *t)
{
    uint64_t word = 0;
    for (int j = 0; j < 4; j++) {
        __m512 part = _mm512_loadu_ps(y + 16 * j);
        word |= (uint64_t)_mm512_cmp_ps_mask(part, _mm512_loadu_ps(t + 16 * j), _CMP_GE_OQ) << (16 * j);
    }
    return word;
}

#elif defined(__AVX2__)

/* The bits of each byte by a table of half bytes (Mula, Kurz and Lemire, arXiv 1611.07612); bytes are added
 * up for at most 31 words, since 31 x 8 fits a byte. */
static inline void count(long taps, const uint64_t *const *x, const uint64_t *const *w, long words,
                         int32_t *counts)
{
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
                                           0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_set1_epi8(15), none = _mm256_setzero_si256();
    for (int part = 0; part < BLOCK; part += 16) {
        __m256i sums[4] = {none, none, none, none}, bytes[4] = {none, none, none, none};
        int pending = 0;
        for (long t = 0; t < taps; t++)
            for (long k = 0; k < words; k++) {
                __m256i bits = _mm256_set1_epi64x((long long)x[t][k]);
                const uint64_t *other = w[t] + BLOCK * k + part;
                for (int j = 0; j < 4; j++) {
                    __m256i weights = _mm256_loadu_si256((const __m256i *)(other + 4 * j));
                    __m256i both = _mm256_and_si256(bits, weights);
                    __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
                    __m256i found = _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(both, low)),
                                                    _mm256_shuffle_epi8(table, high));
                    bytes[j] = _mm256_add_epi8(bytes[j], found);
                }
                if (++pending == 31) {
                    for (int j = 0; j < 4; j++) {
                        sums[j] = _mm256_add_epi64(sums[j], _mm256_sad_epu8(bytes[j], none));
                        bytes[j] = none;
                    }
                    pending = 0;
                }
            }
        for (int j = 0; j < 4; j++) {
            int64_t four[4];
            sums[j] = _mm256_add_epi64(sums[j], _mm256_sad_epu8(bytes[j], none));
            _mm256_storeu_si256((__m256i *)four, sums[j]);
            for (int i = 0; i < 4; i++)
                counts[part + 4 * j + i] = (int32_t)four[i];
        }
    }
}

static inline uint64_t reached(const float *y, const float *t)
{
    uint64_t word = 0;
    for (int j = 0; j < 8; j++) {
        __m256 found = _mm256_cmp_ps(_mm256_loadu_ps(y + 8 * j), _mm256_loadu_ps(t + 8 * j), _CMP_GE_OQ);
        word |= (uint64_t)(uint32_t)_mm256_movemask_ps(found) << (8 * j);
    }
    return word;
}

#else

/* Plain C that compilers turn into vectors: the bits of each byte, added up for at most 31 words. */
static inline void add_bytes(uint64_t *bytes, int32_t *counts)
{
    for (int o = 0; o < BLOCK; o++) {
        const uint64_t pairs = (bytes[o] & 0x00ff00ff00ff00ffu) + ((bytes[o] >> 8) & 0x00ff00ff00ff00ffu);
        counts[o] += (int32_t)((pairs * 0x0001000100010001u) >> 48);
        bytes[o] = 0;
    }
}

static inline void count(long taps, const uint64_t *const *x, const uint64_t *const *w, long words,
                         int32_t *counts)
{
    uint64_t bytes[BLOCK] = {0};
    int pending = 0;
    memset(counts, 0, BLOCK * sizeof *counts);
    for (long t = 0; t < taps; t++)
        for (long k = 0; k < words; k++) {
            const uint64_t bits = x[t][k], *other = w[t] + BLOCK * k;
            for (int o = 0; o < BLOCK; o++) {
                uint64_t both = bits & other[o];
                both -= (both >> 1) & 0x5555555555555555u;
                both = (both & 0x3333333333333333u) + ((both >> 2) & 0x3333333333333333u);
                bytes[o] += (both + (both >> 4)) & 0x0f0f0f0f0f0f0f0fu;
            }
            if (++pending == 31) {
                add_bytes(bytes, counts);
                pending = 0;
            }
        }
    add_bytes(bytes, counts);
}

static inline uint64_t reached(const float *y, const float *t)
{
    uint64_t word = 0;
    for (int i = 0; i < BLOCK; i++)
        word |= (uint64_t)(y[i] >= t[i]) << i;
    return word;
}

#endif

int abi(void) { return ABI; }

/* Whether this processor has an instruction set: 1 AVX2, 2 AVX-512 with VPOPCNTDQ. */
int has(int set)
{
#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
    __builtin_cpu_init();
    if (set == 1)
        return __builtin_cpu_supports("avx2") != 0;
    if (set == 2)
        return __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    (void)set;
    return 0;
}

/* The bits of activations: y (pixels, groups, channels) float -> bits (pixels, groups, planes, words).
 *
 * thresholds (steps, groups, 64 words) rise. Where direction x y reaches threshold m, the bits in toggles[m]
 * change, from all 0. directions (groups, 64 words), null where all are 1. sums (pixels, groups): of
 * x_factor[i] bit_i over the channels; null where no term has a lowest weight.
 */
void pack(const float *y, int64_t pixels, int64_t groups, int64_t channels, int64_t planes,
          const float *thresholds, int64_t steps, const uint8_t *toggles, const float *directions,
          const int32_t *x_factors, uint64_t *bits, int32_t *sums)
{
    const int64_t words = (channels + BLOCK - 1) / BLOCK, row = groups * words * BLOCK;
    float part[BLOCK];
    for (int64_t i = 0; i < pixels * groups; i++) {
        const int64_t group = i % groups;
        const float *from = y + i * channels;
        uint64_t *to = bits + i * planes * words;
        int32_t sum = 0;
        for (int64_t k = 0; k < words; k++) {
            const int64_t at = (group * words + k) * BLOCK, left = channels - k * BLOCK;
            const float *values = from + k * BLOCK;
            uint64_t found[MOST_PLANES] = {0};
            if (left < BLOCK || directions) {
                const int64_t here = left < BLOCK ? left : BLOCK;
                memset(part, 0, sizeof part);
                for (int64_t c = 0; c < here; c++)
                    part[c] = directions ? values[c] * directions[at + c] : values[c];
                values = part;
            }
            for (int64_t m = 0; m < steps; m++) {
                const uint64_t mask = reached(values, thresholds + m * row + at);
                for (int64_t j = 0; j < planes; j++)
                    if (toggles[m] >> j & 1)
                        found[j] ^= mask;
            }
            for (int64_t j = 0; j < planes; j++) {
                to[j * words + k] = found[j];
                if (sums)
                    sum += x_factors[j] * (int32_t)__builtin_popcountll(found[j]);
            }
        }
        if (sums)
            sums[i] = sum;
    }
}

/* The exact sums of one term for the 64 outputs of a block: taps [from, to) of those inside the image. */
static inline void add_term(const Layer *layer, int64_t term, int64_t unit, long from, long to,
                            const int64_t *taps, const uint64_t *const *pixels,
                            const int32_t *const *pixel_sums, int64_t group, int32_t *total)
{
    const int64_t positions = layer->kernel_height * layer->kernel_width, size = layer->words * BLOCK;
    const int32_t *span = layer->spans + 4 * term;
    const uint64_t *x[MOST_TAPS], *w[MOST_TAPS];
    int32_t counts[BLOCK];
    memset(total, 0, BLOCK * sizeof *total);
    for (int64_t i = 0; i < layer->x_planes; i++)
        for (int64_t j = span[2]; j < span[3]; j++) {
            const uint64_t *plane = layer->weights + (unit * layer->w_planes + j) * positions * size;
            const int32_t factor = layer->x_factors[i] * layer->w_factors[j];
            for (long t = from; t < to; t++) {
                x[t - from] = pixels[t] + (group * layer->x_planes + i) * layer->words;
                w[t - from] = plane + taps[t] * size;
            }
            count(to - from, x, w, layer->words, counts);
            for (int o = 0; o < BLOCK; o++)
                total[o] += factor * counts[o];
        }
    if (layer->lowest[term]) {
        int32_t own = 0;
        for (long t = from; t < to; t++)
            own += pixel_sums[t][group];
        for (int o = 0; o < BLOCK; o++)
            total[o] += layer->lowest[term] * own;
    }
    if (layer->zero) {
        const int32_t *sums = layer->weight_sums + (unit * layer->terms + term) * (positions + 1) * BLOCK;
        const int32_t zero = (int32_t)layer->zero;
        if (to - from == span[1] - span[0])
            for (int o = 0; o < BLOCK; o++)
                total[o] += zero * sums[positions * BLOCK + o];
        else
            for (long t = from; t < to; t++)
                for (int o = 0; o < BLOCK; o++)
                    total[o] += zero * sums[taps[t] * BLOCK + o];
    }
}

/* Rows [first, end) of the result, counted over all images: out (images, result_height, result_width, groups,
 * outputs) float. */
void convolve(const Layer *layer, const uint64_t *bits, const int32_t *sums, float *out, int64_t first,
              int64_t end)
{
    const int64_t pixel = layer->groups * layer->x_planes * layer->words;
    const int64_t padded = layer->groups * layer->blocks * BLOCK;
    for (int64_t row = first; row < end; row++) {
        const int64_t image = row / layer->result_height, y = row % layer->result_height;
        for (int64_t column = 0; column < layer->result_width; column++) {
            const uint64_t *pixels[MOST_TAPS];
            const int32_t *pixel_sums[MOST_TAPS];
            int64_t taps[MOST_TAPS];
            long inside = 0;
            for (int64_t a = 0; a < layer->kernel_height; a++) {
                const int64_t iy = y * layer->stride_y + a * layer->dilation_y - layer->pad_y;
                if (iy < 0 || iy >= layer->height)
                    continue;
                for (int64_t b = 0; b < layer->kernel_width; b++) {
                    const int64_t ix = column * layer->stride_x + b * layer->dilation_x - layer->pad_x;
                    if (ix < 0 || ix >= layer->width)
                        continue;
                    const int64_t at = (image * layer->height + iy) * layer->width + ix;
                    taps[inside] = a * layer->kernel_width + b;
                    pixels[inside] = bits + at * pixel;
                    pixel_sums[inside++] = sums ? sums + at * layer->groups : 0;
                }
            }
            for (int64_t group = 0; group < layer->groups; group++)
                for (int64_t block = 0; block < layer->blocks; block++) {
                    const int64_t unit = group * layer->blocks + block;
                    const int64_t left = layer->outputs - block * BLOCK, here = left < BLOCK ? left : BLOCK;
                    double value[BLOCK] = {0};
                    for (int64_t term = 0; term < layer->terms; term++) {
                        const int32_t *span = layer->spans + 4 * term;
                        const double *scales = layer->scales + term * padded + unit * BLOCK;
                        int32_t total[BLOCK];
                        long from = 0, to = inside;
                        while (from < inside && taps[from] < span[0])
                            from++;
                        while (to > from && taps[to - 1] >= span[1])
                            to--;
                        add_term(layer, term, unit, from, to, taps, pixels, pixel_sums, group, total);
                        for (int o = 0; o < BLOCK; o++)
                            value[o] += scales[o] * (double)total[o];
                    }
                    int64_t at = (row * layer->result_width + column) * layer->groups + group;
                    float *to = out + at * layer->outputs;
                    for (int64_t o = 0; o < here; o++)
                        to[block * BLOCK + o] = (float)value[o];
                }
        }
    }
}
