/* The functions of first.c for one type `real`; see there for the formulas. */

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
    const int64_t side = s->width + 2 * s->padding;                                       \
    real *framed = malloc(sizeof(real) * ((s->height + 2 * s->padding) * side * s->in));  \
    int64_t under[MOST_TAPS];                                                             \
    if (!framed)                                                                          \
        return 1;                                                                         \
    NAME(offsets)(s, under);
/* Where the patch of an output pixel begins. */
#define PATCH(h, w) (framed + (((h) * side + (w)) * s->in) * s->stride)

/* a where the mask is set, b elsewhere. */
INLINE VEC NAME(pick)(MASK mask, VEC a, VEC b)
{
    return (VEC)(((MASK)a & mask) | ((MASK)b & ~mask));
}

/* Leaky ReLU's derivative at `out` times v. */
INLINE VEC NAME(slant)(VEC out, VEC v, real slope)
{
    return NAME(pick)((MASK)(out > 0), v, v * slope);
}

/* The distance of each number of a patch from its first one. */
INLINE void NAME(offsets)(const shape *s, int64_t *under)
{
    const int64_t side = s->width + 2 * s->padding;
    for (int64_t h = 0; h < s->size; h++)
        for (int64_t w = 0; w < s->size; w++)
            for (int64_t i = 0; i < s->in; i++)
                *under++ = (h * side + w) * s->in + i;
}

/* One image less the level, and the padding around it. */
static void NAME(frame)(const shape *s, const real *x, const real *level, real *framed)
{
    const int64_t side = s->width + 2 * s->padding, high = s->height + 2 * s->padding;
    for (int64_t h = 0; h < high; h++)
        for (int64_t w = 0; w < side; w++) {
            const int64_t row = h - s->padding, column = w - s->padding;
            const int outside = row < 0 || column < 0 || row >= s->height || column >= s->width;
            const real *from = outside ? NULL : x + (row * s->width + column) * s->in;
            for (int64_t i = 0; i < s->in; i++)
                *framed++ = (from ? from[i] : 0) - level[i];
        }
}

/* sums [row, row] += rows' rows for FOUR of their numbers. */
INLINE void NAME(products)(const int vectors, const real *rows, int64_t count, int64_t a,
                           double *sums)
{
    VEC sum[FOUR][MOST_TAPS / 8];
    for (int r = 0; r < FOUR; r++)
        for (int v = 0; v < vectors; v++)
            sum[r][v] = (VEC){0};
    for (int64_t p = 0; p < count; p++, rows += vectors * LANES)
        for (int r = 0; r < FOUR; r++)
            for (int v = 0; v < vectors; v++)
                sum[r][v] += AT(rows, v) * rows[a + r];
    for (int r = 0; r < FOUR; r++)
        for (int v = 0; v < vectors; v++)
            for (int l = 0; l < LANES; l++)
                sums[((a + r) * vectors + v) * LANES + l] += sum[r][v][l];
}

/* level [T, I]: about the mean of x; mean [T, K] and covariance [T, K, K]: of patches less that. */
int NAME(first_moments)(const real *x, real *level, double *mean, double *covariance,
                        const shape *s)
{
    OPEN
    (void)cells_h, (void)cells_w;
    const int64_t vectors = (taps + LANES) / LANES, row = vectors * LANES;
    const int64_t count = s->batch * s->out_height * s->out_width;
    real *rows = calloc(PIXELS * row, sizeof(real));
    double *sums = malloc(sizeof(double) * (row * row));
    if (!rows || !sums) {
        free(framed), free(rows), free(sums);
        return 1;
    }
    for (int64_t p = 0; p < PIXELS; p++)
        rows[p * row + taps] = 1; /* the products with one are the sums */
    for (int64_t t = 0; t < s->tasks; t++) {
        const real *images = x + t * s->batch * image;
        for (int64_t i = 0; i < s->in; i++) {
            double sum = 0;
            for (int64_t p = i; p < s->batch * image; p += s->in)
                sum += images[p];
            level[t * s->in + i] = (real)(sum / (double)(s->batch * s->height * s->width));
        }
        memset(sums, 0, sizeof(double) * (row * row));
        int64_t filled = 0;
        for (int64_t p = 0; p < count; p++) {
            const int64_t h = p / s->out_width % s->out_height, w = p % s->out_width;
            if (h == 0 && w == 0)
                NAME(frame)(s, images + p / (s->out_height * s->out_width) * image,
                            level + t * s->in, framed);
            for (int64_t k = 0; k < taps; k++)
                rows[filled * row + k] = PATCH(h, w)[under[k]];
            if (++filled < PIXELS && p + 1 < count)
                continue;
            for (int64_t a = 0; a <= taps; a += FOUR)
                switch (vectors) {
#define CASE(n)                                                                           \
    case n:                                                                               \
        NAME(products)(n, rows, filled, a, sums);                                         \
        break;
                    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
                }
            filled = 0;
        }
        for (int64_t a = 0; a < taps; a++)
            mean[t * taps + a] = sums[a * row + taps] / (double)count;
        for (int64_t a = 0; a < taps; a++)
            for (int64_t b = 0; b < taps; b++)
                covariance[(t * taps + a) * taps + b] =
                    sums[a * row + b] / (double)count - mean[t * taps + a] * mean[t * taps + b];
    }
    free(framed), free(rows), free(sums);
    return 0;
}

/* y [pool * pool][wide]: what every pixel of one window answers. */
INLINE void NAME(window)(const int pool, const int wide, const shape *s, int64_t taps,
                         const int64_t *under, const real *const *at, const real *weights,
                         const real *bias, VEC y[4][WIDE])
{
    for (int k = 0; k < pool * pool; k++)
        for (int v = 0; v < wide; v++)
            y[k][v] = AT(bias, v);
    for (int64_t tap = 0; tap < taps; tap++)
        for (int v = 0; v < wide; v++) {
            const VEC w = AT(weights + tap * s->out, v);
            for (int k = 0; k < pool * pool; k++)
                y[k][v] += w * at[k][under[tap]];
        }
}

#define EACH_WINDOW                                                                       \
    for (int64_t b = 0; b < s->batch; b++) {                                              \
        NAME(frame)(s, x + (t * s->batch + b) * image, level + t * s->in, framed);        \
        for (int64_t i = 0; i < cells_h; i++)                                             \
            for (int64_t j = 0; j < cells_w; j++) {                                       \
                const int64_t cell = ((t * s->batch + b) * cells_h + i) * cells_w + j;    \
                const real *at[4];                                                        \
                for (int k = 0; k < pool * pool; k++)                                     \
                    at[k] = PATCH(pool * i + k / pool, pool * j + k % pool);
#define END }}

INLINE void NAME(forward_channels)(const int pool, const int wide, const shape *s, int64_t o,
                                   int64_t cell, int64_t taps, const int64_t *under,
                                   const real *const *at, const real *weights, const real *bias,
                                   real slope, real *out, uint8_t *which)
{
    VEC y[4][WIDE];
    NAME(window)(pool, wide, s, taps, under, at, weights + o, bias + o, y);
    for (int v = 0; v < wide; v++) {
        VEC best = y[0][v];
        MASK place = {0};
        for (int k = 1; k < pool * pool; k++) {
            const MASK more = (MASK)(y[k][v] > best) | (MASK)(y[k][v] != y[k][v]);
            best = NAME(pick)(more, y[k][v], best);
            place = (place & ~more) | (more & k);
        }
        AT(out + cell * s->out + o, v) = NAME(slant)(best, best, slope);
        ((BYTES *)(which + cell * s->out + o))[v] = __builtin_convertvector(place, BYTES);
    }
}

/* Cotangents of the gradients of weights and bias -> that of dout. */
INLINE void NAME(pull_channels)(const int pool, const int wide, const shape *s, int64_t o,
                                int64_t cell, int64_t taps, const int64_t *under,
                                const real *const *at, const real *weights, const real *bias,
                                real slope, const real *out, const uint8_t *which, real *ddout)
{
    VEC y[4][WIDE];
    const int64_t first = cell * s->out + o;
    NAME(window)(pool, wide, s, taps, under, at, weights + o, bias + o, y);
    for (int v = 0; v < wide; v++) {
        const MASK place = __builtin_convertvector(((BYTES *)(which + first))[v], MASK);
        VEC mine = y[0][v];
        for (int k = 1; k < pool * pool; k++)
            mine = NAME(pick)((MASK)(place == k), y[k][v], mine);
        AT(ddout + first, v) = NAME(slant)(AT(out + first, v), mine, slope);
    }
}

/* u [windows][pool * pool]: each window's gradient, at its greatest pixel alone. */
INLINE void NAME(scatter)(const int pool, const shape *s, int64_t windows, const real *dout,
                          const real *out, const uint8_t *which, real slope, VEC *u)
{
    for (int64_t j = 0; j < windows; j++, dout += s->out, out += s->out, which += s->out) {
        const VEC mine = NAME(slant)(AT(out, 0), AT(dout, 0), slope);
        const MASK place = __builtin_convertvector(*(BYTES *)which, MASK);
        for (int k = 0; k < pool * pool; k++)
            *u++ = NAME(pick)((MASK)(place == k), mine, (VEC){0});
    }
}

/* dw[`few` taps from `first`] += u * patch over a row of windows, for one vector of channels. */
INLINE void NAME(gather)(const int pool, const int few, const shape *s, int64_t windows,
                         const int64_t *under, const real *patches, int64_t below, const VEC *u,
                         VEC *sums)
{
    VEC sum[NINE];
    for (int tap = 0; tap < few; tap++)
        sum[tap] = sums[tap];
    for (int64_t j = 0; j < windows; j++, patches += pool * s->stride * s->in)
        for (int k = 0; k < pool * pool; k++, u++) {
            const real *patch = patches + k / pool * below + k % pool * (s->stride * s->in);
            for (int tap = 0; tap < few; tap++)
                sum[tap] += *u * patch[under[tap]];
        }
    for (int tap = 0; tap < few; tap++)
        sums[tap] = sum[tap];
}

/* dw [taps][O] and db [O] of one image, for one vector of channels. */
INLINE void NAME(gradient_image)(const int pool, const shape *s, const int64_t *under,
                                 const real *framed, const real *dout, const real *out,
                                 const uint8_t *which, real slope, VEC *u, double *dw,
                                 double *db)
{
    const int64_t windows = s->out_width / pool, taps = s->size * s->size * s->in;
    const int64_t below = (s->width + 2 * s->padding) * s->stride * s->in;
    VEC sums[MOST_TAPS], total = (VEC){0};
    for (int64_t tap = 0; tap < taps; tap++)
        sums[tap] = (VEC){0};
    for (int64_t i = 0; i < s->out_height / pool; i++) {
        const int64_t cell = i * windows * s->out;
        int64_t tap = 0;
        NAME(scatter)(pool, s, windows, dout + cell, out + cell, which + cell, slope, u);
        for (int64_t v = 0; v < windows * pool * pool; v++)
            total += u[v];
#define TAPS(n)                                                                           \
    for (; tap + n <= taps; tap += n)                                                     \
        NAME(gather)(pool, n, s, windows, under + tap, framed + i * pool * below, below, u, \
                     sums + tap);
        TAPS(NINE) TAPS(1)
#undef TAPS
    }
    for (int64_t tap = 0; tap < taps; tap++)
        for (int c = 0; c < LANES; c++)
            dw[tap * s->out + c] += sums[tap][c];
    for (int c = 0; c < LANES; c++)
        db[c] += total[c];
}

/* Call for constants of what decides the loops. */
#define STEP(n, call)                                                                     \
    for (; o + n * LANES <= s->out; o += n * LANES)                                       \
        call(n);

int NAME(first_forward)(const real *x, const real *level, const real *weights, const real *bias,
                        real *out, uint8_t *which, const shape *s, double slope)
{
    OPEN
    for (int64_t t = 0; t < s->tasks; t++) {
        const real *w = weights + t * taps * s->out, *b0 = bias + t * s->out;
#define CALL(n)                                                                           \
    NAME(forward_channels)(pool, n, s, o, cell, taps, under, at, w, b0, (real)slope, out, which)
#define ALL                                                                               \
    EACH_WINDOW                                                                           \
    int64_t o = 0;                                                                        \
    STEP(4, CALL) STEP(2, CALL) STEP(1, CALL)                                             \
    END
        if (s->pool == 2) {
            enum { pool = 2 };
            ALL
        } else {
            enum { pool = 1 };
            ALL
        }
#undef CALL
    }
    free(framed);
    return 0;
}

/* of_weights [T, K, O] and of_bias [T, O] are cotangents; ddout is that of dout. */
int NAME(first_pull)(const real *x, const real *level, const real *of_weights,
                     const real *of_bias, const real *out, const uint8_t *which, real *ddout,
                     const shape *s, double slope)
{
    OPEN
    for (int64_t t = 0; t < s->tasks; t++) {
        const real *w = of_weights + t * taps * s->out, *b0 = of_bias + t * s->out;
#define CALL(n)                                                                           \
    NAME(pull_channels)(pool, n, s, o, cell, taps, under, at, w, b0, (real)slope, out, which, \
                        ddout)
        if (s->pool == 2) {
            enum { pool = 2 };
            ALL
        } else {
            enum { pool = 1 };
            ALL
        }
#undef CALL
#undef ALL
    }
    free(framed);
    return 0;
}

/* dw [T, K, O] and db [T, O]. */
int NAME(first_gradient)(const real *x, const real *level, const real *dout, const real *out,
                         const uint8_t *which, real *dw, real *db, const shape *s, double slope)
{
    OPEN
    double *sums = malloc(sizeof(double) * ((taps + 1) * s->out)), *last = sums + taps * s->out;
    VEC *u = aligned_alloc(64, 64 * (s->out_width * s->pool));
    if (!sums || !u) {
        free(framed), free(sums), free(u);
        return 1;
    }
    for (int64_t t = 0; t < s->tasks; t++) {
        memset(sums, 0, sizeof(double) * ((taps + 1) * s->out));
        for (int64_t b = 0; b < s->batch; b++) {
            NAME(frame)(s, x + (t * s->batch + b) * image, level + t * s->in, framed);
            for (int64_t o = 0; o < s->out; o += LANES) {
                const int64_t at = (t * s->batch + b) * cells_h * cells_w * s->out + o;
#define CALL(pool)                                                                        \
    NAME(gradient_image)(pool, s, under, framed, dout + at, out + at, which + at, (real)slope, \
                         u, sums + o, last + o)
                if (s->pool == 2)
                    CALL(2);
                else
                    CALL(1);
#undef CALL
            }
        }
        for (int64_t k = 0; k < taps * s->out; k++)
            dw[t * taps * s->out + k] = (real)sums[k];
        for (int64_t o = 0; o < s->out; o++)
            db[t * s->out + o] = (real)last[o];
    }
    free(framed), free(sums), free(u);
    return 0;
}

#undef VEC
#undef MASK
#undef BYTES
#undef LANES
#undef AT
#undef OPEN
#undef PATCH
#undef EACH_WINDOW
#undef END
#undef STEP
