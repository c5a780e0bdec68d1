/* Types and images in their frames, for one type `real`; see first.c. */

typedef real NAME(vec) __attribute__((vector_size(64), aligned(sizeof(real)), may_alias));
typedef whole NAME(mask) __attribute__((vector_size(64)));
typedef uint8_t NAME(bytes) __attribute__((vector_size(64 / sizeof(real)), aligned(1), may_alias));
#define VEC NAME(vec)
#define MASK NAME(mask)
#define BYTES NAME(bytes)
#define LANES ((int64_t)(64 / sizeof(real)))
#define AT(pointer, v) (((VEC *)(pointer))[v])
#define OPEN                                                                              \
    const int64_t taps = s->size * s->size * s->in;                                       \
    const int64_t cells_h = s->out_height / s->pool, cells_w = s->out_width / s->pool;    \
    const int64_t image = s->height * s->width * s->in;                                   \
    const int64_t side = s->width + 2 * s->padding, high = s->height + 2 * s->padding;    \
    real *framed = malloc(sizeof(real) * (s->in * high * side));                          \
    int64_t under[MOST_TAPS];                                                             \
    if (!framed)                                                                          \
        return 1;                                                                         \
    NAME(offsets)(s, under);
/* Where the patch of an output pixel begins. */
#define PATCH(h, w) (framed + ((h) * side + (w)) * s->stride)

/* The distance of each number of a patch from its first one. */
INLINE void NAME(offsets)(const shape *s, int64_t *under)
{
    const int64_t side = s->width + 2 * s->padding, high = s->height + 2 * s->padding;
    for (int64_t h = 0; h < s->size; h++)
        for (int64_t w = 0; w < s->size; w++)
            for (int64_t i = 0; i < s->in; i++)
                *under++ = (i * high + h) * side + w;
}

/* One image less the level, and the padding around it. */
static void NAME(frame)(const shape *s, const real *x, const real *level, real *framed)
{
    const int64_t side = s->width + 2 * s->padding, high = s->height + 2 * s->padding;
    for (int64_t i = 0; i < s->in; i++)
        for (int64_t h = -s->padding; h < high - s->padding; h++, framed += side) {
            for (int64_t w = 0; w < side; w++)
                framed[w] = -level[i];
            for (int64_t w = 0; h >= 0 && h < s->height && w < s->width; w++)
                framed[s->padding + w] += *x++;
        }
}
