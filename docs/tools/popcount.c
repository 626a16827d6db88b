/* A 3x3 convolution of +1 and -1 by XOR and population count: what one small kernel reaches on AVX-512.
 *
 * Tensors are channels last; channels and outputs are multiples of 64. A bit is 1 for a negative number.
 * Pixels outside the image count nothing, as zeros do. The sums are exact.
 */
#include <immintrin.h>
#include <stdint.h>

/* x: pixels x channels float32 -> bits: pixels x (channels / 64). */
void pack(const float *x, int pixels, int channels, uint64_t *bits)
{
    int words = channels / 64;
    for (long i = 0; i < (long)pixels * words; i++) {
        uint64_t word = 0;
        for (int j = 0; j < 4; j++) {
            __m512 part = _mm512_loadu_ps(x + 64 * i + 16 * j);
            word |= (uint64_t)_mm512_cmp_ps_mask(part, _mm512_setzero_ps(), _CMP_LT_OQ) << (16 * j);
        }
        bits[i] = word;
    }
}

/* x: size x size x words; w: 3 x 3 x words x outputs; y: result x result x outputs float32; padding 1. */
void convolve(const uint64_t *x, const uint64_t *w, float *y, int size, int words, int outputs, int stride, int result)
{
    for (int row = 0; row < result; row++)
    for (int column = 0; column < result; column++)
    for (int o = 0; o < outputs; o += 64) {
        __m512i unequal[8];
        int count = 0;
        for (int j = 0; j < 8; j++)
            unequal[j] = _mm512_setzero_si512();
        for (int tap = 0; tap < 9; tap++) {
            int iy = row * stride + tap / 3 - 1, ix = column * stride + tap % 3 - 1;
            if (iy < 0 || iy >= size || ix < 0 || ix >= size)
                continue;
            const uint64_t *pixel = x + ((long)iy * size + ix) * words;
            const uint64_t *kernel = w + (long)tap * words * outputs + o;
            count += 64 * words;
            for (int k = 0; k < words; k++) {
                __m512i bits = _mm512_set1_epi64((long long)pixel[k]);
                for (int j = 0; j < 8; j++) {
                    __m512i other = _mm512_loadu_si512(kernel + (long)k * outputs + 8 * j);
                    unequal[j] = _mm512_add_epi64(unequal[j], _mm512_popcnt_epi64(_mm512_xor_si512(bits, other)));
                }
            }
        }
        float *out = y + ((long)row * result + column) * outputs + o;
        for (int j = 0; j < 8; j++) {
            __m512i sum = _mm512_sub_epi64(_mm512_set1_epi64(count), _mm512_slli_epi64(unequal[j], 1));
            _mm256_storeu_ps(out + 8 * j, _mm512_cvtepi64_ps(sum));
        }
    }
}
