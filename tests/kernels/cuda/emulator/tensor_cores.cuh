// The emulator's version of tensor_cores.cuh: the lanes exchange what they hold, and each computes its own part.
#include "kernel.cuh"

using SharedAddress = unsigned long long;

inline SharedAddress shared_address(const void *pointer) { return reinterpret_cast<SharedAddress>(pointer); }

template <int OFFSET = 0>
inline void load_matrices(SharedAddress row, int (&words)[4])
{
    const unsigned long long *rows = emulator::meet(ALL_LANES, row + OFFSET);
    for (int i = 0; i < 4; i++)
        words[i] = reinterpret_cast<const int *>(rows[8 * i + lane_id() / 4])[lane_id() % 4];
}

template <int N>
inline void multiply(const int *a, const int *b, int (&product)[4])
{
    int row = lane_id() / 4, column = lane_id() % 4 * 2;
    memset(product, 0, sizeof product);
    for (int half = 0; half < N; half++) {
        unsigned long long pair;
        int columns[8][4], rows[2][4];
        const unsigned long long *values = emulator::meet(ALL_LANES, static_cast<unsigned>(b[half]));
        for (int n = 0; n < 8; n++)
            for (int t = 0; t < 4; t++)
                columns[n][t] = static_cast<int>(values[4 * n + t]);
        memcpy(&pair, a + 2 * half, sizeof pair);
        values = emulator::meet(ALL_LANES, pair);
        for (int t = 0; t < 4; t++)
            for (int i = 0; i < 2; i++)
                rows[i][t] = static_cast<int>(values[4 * row + t] >> 32 * i);
        for (int i = 0; i < 4; i++)
            for (int t = 0; t < 4; t++)
                product[i] = __dp4a(rows[i / 2][t], columns[column + i % 2][t], product[i]);
    }
}
