// What a type's file ends with: its tables, and one weight as float32, as ref/quants.py has it.

// Before a block's threads unpack weights all of them call this, and none has ended.
__device__ __forceinline__ void load_tables()
{
#ifdef HAS_CODEBOOK
    load_codebook();
#endif
}

// The element i of a row of weights.
__device__ __forceinline__ float dequantize(const unsigned char *row, long long i)
{
#ifdef FLOAT_TYPE
    return Block::load(row, i);
#else
    const unsigned char *bytes = row + i / Block::SIZE * Block::BYTES;
    int in_block = i % Block::SIZE;
    float weight = 0.0f;
    for (int number = 0; number < Block::SIZE / 32; number++) {
        int in_part = in_block - Block::first(number), run = in_part >= Block::APART, in_run = in_part - run * Block::APART;
        if (in_run < 0 || in_run >= 16)
            continue;
        Block block;
        block.load(bytes, Block::SIZE == 32 ? i / 32 % 2 : number);
        Part part = block.unpack(number);
        int q = static_cast<signed char>(part.q[run][in_run / 4] >> 8 * (in_run % 4)) - Block::OFFSET;
        float d = has_two_scales<Block>() && run ? part.dmin : part.d;
        weight = __fmul_rn(__fmul_rn(d, part.scale[run]), q);
        if (Block::HAS_MINIMUM)
            weight = __fsub_rn(weight, __fmul_rn(part.dmin, part.minimum[run]));
    }
    return weight;
#endif
}
