// The scales and minimums of Q4_K and Q5_K: get_scale_min_k4 in ggml-quants.c.
#include "blocks/block.cuh"

// `header`: d and dmin, then three words a, b, c. Groups 0..3 stand in the low 6 bits of the bytes of a (scales)
// and b (minimums); c has 4 bits of each of the others, a and b their high 2. A pair is groups 2i and 2i + 1.
__device__ __forceinline__ void unpack_six_bits(const unsigned (&header)[4], int pair, Part &part)
{
    int shift = pair % 2 * 16;
    unsigned a = header[1] >> shift, b = header[2] >> shift, c = header[3] >> shift;
    unsigned scales = pair < 2 ? a & 0x3f3f : (c & 0x0f0f) | (a >> 2 & 0x3030);
    unsigned minimums = pair < 2 ? b & 0x3f3f : (c >> 4 & 0x0f0f) | (b >> 2 & 0x3030);
    part.scale[0] = scales & 255, part.scale[1] = scales >> 8;
    part.minimum[0] = minimums & 255, part.minimum[1] = minimums >> 8;
    part.d = low_f16(header[0]), part.dmin = high_f16(header[0]);
}
