// The inner loops of the page's engine, for WebAssembly with its vectors of four numbers.
//
// Everything expensive in our models is one operation: "for every place of a picture, add up the numbers that
// lie at some taps around it, each times a weight". A convolution has k × k taps, a linear layer one, and a
// transposed convolution of stride 2 is four convolutions, one for each combination of even and odd rows and
// columns. The backward passes are the same with other weights (18_gradient_by_hand). So there is one kernel.
//
// Pictures lie in memory with channels last, and with a border of zeros, so that no tap needs a question.
// `make wasm` makes kernel.wasm of this file.
#include <wasm_simd128.h>

#define EXPORT __attribute__((visibility("default")))
#define PLACES 6  // places that are computed together: 6 × 8 sums and 2 weights fit a processor's registers

extern unsigned char __heap_base;
static unsigned end_of_used;

// So many bytes of memory, for good; what nothing has written yet is zero.
EXPORT unsigned alloc(unsigned bytes) {
  if (!end_of_used) end_of_used = ((unsigned)&__heap_base + 15) & ~15u;
  unsigned here = end_of_used;
  end_of_used += (bytes + 15) & ~15u;
  unsigned pages = (end_of_used + 65535) / 65536, there = __builtin_wasm_memory_size(0);
  if (pages > there) __builtin_wasm_memory_grow(0, pages - there);
  return here;
}

// For y < height, x < width and every output channel o:
//   out(y · out_step, x · out_step)[o] = bias[o] + Σ_tap Σ_i in(y · in_step, x · in_step, moved by tap)[i] · w
// `in` and `out` point to the place (0, 0); rows are in_row and out_row places long; a tap is a number of places.
// Output channels come in blocks of eight, of four at the end; weights are [block][tap][input][in the block].
EXPORT void convolve(const float *in, int in_row, int in_step, int in_channels,
                     float *out, int out_row, int out_step, int out_channels, int height, int width,
                     int taps, const int *tap, const float *weight, const float *bias) {
  const int n = height * width;
  for (int o = 0; o < out_channels; o += 8) {
    const int wide = out_channels - o >= 8;
    const v128_t zero = wasm_f32x4_splat(0);
    const v128_t bias_a = bias ? wasm_v128_load(bias + o) : zero;
    const v128_t bias_b = bias && wide ? wasm_v128_load(bias + o + 4) : zero;
    for (int first = 0; first < n; first += PLACES) {
      const float *from[PLACES];
      float *to[PLACES];
      v128_t a[PLACES], b[PLACES];  // the sums: channels o to o + 3, and o + 4 to o + 7
      #pragma clang loop unroll(full)
      for (int j = 0; j < PLACES; j++) {
        const int place = first + j < n ? first + j : n - 1;  // beyond the end: the last place once more
        const int y = place / width, x = place % width;
        from[j] = in + (y * in_row + x) * in_step * in_channels;
        to[j] = out + (y * out_row + x) * out_step * out_channels + o;
        a[j] = bias_a; b[j] = bias_b;
      }
      const float *w = weight + o * taps * in_channels;
      for (int t = 0; t < taps; t++) {
        const int moved = tap[t] * in_channels;
        v128_t c[PLACES], d[PLACES];  // the sums of this tap: short sums of sums round less than one long sum
        #pragma clang loop unroll(full)
        for (int j = 0; j < PLACES; j++) c[j] = d[j] = zero;
        if (wide) for (int i = 0; i < in_channels; i++, w += 8) {
          const v128_t wa = wasm_v128_load(w), wb = wasm_v128_load(w + 4);
          #pragma clang loop unroll(full)
          for (int j = 0; j < PLACES; j++) {
            const v128_t v = wasm_v128_load32_splat(from[j] + moved + i);
            c[j] = wasm_f32x4_add(c[j], wasm_f32x4_mul(v, wa));
            d[j] = wasm_f32x4_add(d[j], wasm_f32x4_mul(v, wb));
          }
        } else for (int i = 0; i < in_channels; i++, w += 4) {
          const v128_t wa = wasm_v128_load(w);
          #pragma clang loop unroll(full)
          for (int j = 0; j < PLACES; j++)
            c[j] = wasm_f32x4_add(c[j], wasm_f32x4_mul(wasm_v128_load32_splat(from[j] + moved + i), wa));
        }
        #pragma clang loop unroll(full)
        for (int j = 0; j < PLACES; j++) { a[j] = wasm_f32x4_add(a[j], c[j]); b[j] = wasm_f32x4_add(b[j], d[j]); }
      }
      #pragma clang loop unroll(full)
      for (int j = 0; j < PLACES; j++) {
        wasm_v128_store(to[j], a[j]);
        if (wide) wasm_v128_store(to[j] + 4, b[j]);
      }
    }
  }
}

// e^x for x ≤ 0: two to a whole number, times a polynomial for the rest. Relative error below 2e-6.
static float exponential(float x) {
  if (x < -80) return 0;
  const int whole = (int)(x * 1.44269504f - .5f);
  const float r = x - whole * .693147181f;
  const float rest = 1 + r * (1 + r * (1.f / 2 + r * (1.f / 6 + r * (1.f / 24 + r * (1.f / 120 + r / 720)))));
  const union { int bits; float value; } power = { .bits = (whole + 127) << 23 };
  return power.value * rest;
}

// ELU in place, of `height` rows of `length` numbers that begin `row` numbers apart.
EXPORT void elu(float *v, int row, int height, int length) {
  for (int y = 0; y < height; y++, v += row)
    for (int i = 0; i < length; i++) if (v[i] < 0) v[i] = exponential(v[i]) - 1;
}

// The way back through ELU, in place: its slope is 1 above zero, and its own output + 1 below.
EXPORT void elu_backward(float *g, const float *output, int row, int height, int length) {
  for (int y = 0; y < height; y++, g += row, output += row)
    for (int i = 0; i < length; i++) if (output[i] < 0) g[i] *= output[i] + 1;
}
