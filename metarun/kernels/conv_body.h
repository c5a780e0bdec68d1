/* The functions of conv.c for one type `real`. */

typedef real NAME(vec) __attribute__((vector_size(64), aligned(sizeof(real)), may_alias));
#define VEC NAME(vec)
#define LANES ((int64_t)(64 / sizeof(real)))
#define AT(pointer, v) (((VEC *)(pointer))[v])

/* Return where the input pixel under a tap of an output pixel begins, or -1 beyond the edge. */
INLINE int64_t NAME(source)(const shape *s, const place *p, int64_t tap)
{
    const int64_t h = p->h + s->down[tap], w = p->w + s->across[tap];
    if (h < 0 || w < 0 || h >= s->height || w >= s->width)
        return -1;
    return ((p->b * s->height + h) * s->width + w) * s->in;
}

/* sums[r][v] += sum_i rows[r][i] * weights[i * apart + v] */
INLINE void NAME(multiply)(const int wide, VEC sums[TILE][WIDE], const real *const rows[TILE],
                           const real *weights, int64_t apart, int64_t count)
{
    for (int64_t i = 0; i < count; i++, weights += apart) {
        VEC w[WIDE];
        for (int v = 0; v < wide; v++)
            w[v] = AT(weights, v);
        for (int r = 0; r < TILE; r++)
            for (int v = 0; v < wide; v++)
                sums[r][v] += w[v] * rows[r][i];
    }
}

INLINE void NAME(forward_tile)(const int wide, const shape *s, const real *const *rows,
                               const real *packed, const real *bias, real *const out[TILE])
{
    const int64_t taps = s->size * s->size;
    VEC sums[TILE][WIDE];
    for (int r = 0; r < TILE; r++)
        for (int v = 0; v < wide; v++)
            sums[r][v] = bias ? AT(bias, v) : (VEC){0};
    for (int64_t tap = 0; tap < taps; tap++)
        NAME(multiply)(wide, sums, rows + tap * TILE, packed + tap * s->in * s->out, s->out, s->in);
    for (int r = TILE - 1; r >= 0; r--) /* backwards: a short tile repeats its last pixel */
        for (int v = 0; v < wide; v++)
            AT(out[r], v) = sums[r][v];
}

/* y = x * w + bias; bias may be NULL. Return 0, or 1 when memory is short. */
int NAME(conv_forward)(const real *x, const real *weights, int64_t apart, const real *bias, real *y,
                       const given *of)
{
    const shape prepared = prepare(of), *s = &prepared;
    const place *places = s->places;
    const int64_t taps = s->size * s->size, count = taps * s->in;
    const int64_t pixels = s->batch * s->out_height * s->out_width;
    const int64_t image = s->batch * s->height * s->width * s->in; /* numbers a task */
    real *packed = malloc(sizeof(real) * (count * s->out)), *zeros = calloc(s->in, sizeof(real));
    const real *rows[MOST_TAPS * TILE];
    if (!packed || !zeros || !places) {
        free(packed), free(zeros), free(s->places);
        return 1;
    }
    for (int64_t t = 0; t < s->tasks; t++) {
        const real *w = weights + t * apart;
        if (t == 0 || apart)
            for (int64_t from = 0; from < count; from += 16)
                for (int64_t o = 0; o < s->out; o += 16)
                    for (int64_t k = from; k < from + 16 && k < count; k++)
                        for (int64_t j = o; j < o + 16 && j < s->out; j++)
                            packed[k * s->out + j] = w[j * count + k];
        for (int64_t p = 0; p < pixels; p += TILE) {
            real *out[TILE];
            for (int r = 0; r < TILE; r++) {
                const int64_t at = p + r < pixels ? p + r : pixels - 1;
                out[r] = y + (t * pixels + at) * s->out;
                for (int64_t tap = 0; tap < taps; tap++) {
                    const int64_t from = NAME(source)(s, places + at, tap);
                    rows[tap * TILE + r] = from < 0 ? zeros : x + t * image + from;
                }
            }
            int64_t o = 0;
            const real *b = bias ? bias + t * s->out : NULL;
#define STEP(n)                                                                         \
    for (; o + n * LANES <= s->out; o += n * LANES) {                                   \
        real *to[TILE];                                                                 \
        for (int r = 0; r < TILE; r++)                                                  \
            to[r] = out[r] + o;                                                         \
        NAME(forward_tile)(n, s, rows, packed + o, b ? b + o : NULL, to);               \
    }
            STEP(4) STEP(2) STEP(1)
#undef STEP
        }
    }
    free(packed), free(zeros), free(s->places);
    return 0;
}

INLINE void NAME(input_tile)(const int wide, const shape *s, const real *const dy[TILE],
                             const real *weights, real *const to[TILE], int filled)
{
    VEC sums[TILE][WIDE];
    for (int r = 0; r < TILE; r++)
        for (int v = 0; v < wide; v++)
            sums[r][v] = (VEC){0};
    NAME(multiply)(wide, sums, dy, weights, s->size * s->size * s->in, s->out);
    for (int r = 0; r < TILE; r++)
        if (r < filled && to[r])
            for (int v = 0; v < wide; v++)
                AT(to[r], v) += sums[r][v];
}

/* dx, the gradient of x. */
int NAME(conv_input)(const real *dy, const real *weights, int64_t apart, real *dx, const given *of)
{
    const shape prepared = prepare(of), *s = &prepared;
    const place *places = s->places;
    if (!places)
        return 1;
    const int64_t taps = s->size * s->size, pixels = s->batch * s->out_height * s->out_width;
    const int64_t image = s->batch * s->height * s->width * s->in;
    memset(dx, 0, sizeof(real) * (s->tasks * image));
    for (int64_t t = 0; t < s->tasks; t++)
        for (int64_t p = 0; p < pixels; p += TILE) {
            const int filled = pixels - p < TILE ? (int)(pixels - p) : TILE;
            const real *rows[TILE];
            for (int r = 0; r < TILE; r++)
                rows[r] = dy + (t * pixels + p + (r < filled ? r : 0)) * s->out;
            for (int64_t tap = 0; tap < taps; tap++) {
                int64_t from[TILE], i = 0;
                for (int r = 0; r < filled; r++)
                    from[r] = NAME(source)(s, places + p + r, tap);
#define STEP(n)                                                                              \
    for (; i + n * LANES <= s->in; i += n * LANES) {                                         \
        real *to[TILE];                                                                      \
        for (int r = 0; r < TILE; r++)                                                       \
            to[r] = r >= filled || from[r] < 0 ? NULL : dx + t * image + from[r] + i;        \
        NAME(input_tile)(n, s, rows, weights + t * apart + tap * s->in + i, to, filled);     \
    }
                STEP(4) STEP(2) STEP(1)
#undef STEP
            }
        }
    free(s->places);
    return 0;
}

/* out [T, B, OH, OW, row]: the patch under each output pixel, filled up with zeros. */
int NAME(patches)(const real *x, real *out, int64_t row, const given *of)
{
    const shape prepared = prepare(of), *s = &prepared;
    const place *places = s->places;
    if (!places)
        return 1;
    const int64_t taps = s->size * s->size, pixels = s->batch * s->out_height * s->out_width;
    const int64_t image = s->batch * s->height * s->width * s->in;
    memset(out, 0, sizeof(real) * (s->tasks * pixels * row));
    for (int64_t t = 0; t < s->tasks; t++)
        for (int64_t p = 0; p < pixels; p++)
            for (int64_t tap = 0; tap < taps; tap++) {
                const int64_t from = NAME(source)(s, places + p, tap);
                for (int64_t i = 0; from >= 0 && i < s->in; i++)
                    out[(t * pixels + p) * row + tap * s->in + i] = x[t * image + from + i];
            }
    free(s->places);
    return 0;
}

INLINE void NAME(weight_tile)(const int wide, int64_t pixels, const real *const *rows, int64_t i,
                              const real *dy, int64_t apart, real *const to[4])
{
    VEC sums[4][WIDE];
    for (int j = 0; j < 4; j++)
        for (int v = 0; v < wide; v++)
            sums[j][v] = AT(to[j], v);
    for (int64_t p = 0; p < pixels; p++, dy += apart) {
        VEC x[WIDE];
        for (int v = 0; v < wide; v++)
            x[v] = AT(rows[p] + i, v);
        for (int j = 0; j < 4; j++)
            for (int v = 0; v < wide; v++)
                sums[j][v] += x[v] * dy[j];
    }
    for (int j = 0; j < 4; j++)
        for (int v = 0; v < wide; v++)
            AT(to[j], v) = sums[j][v];
}

/* dw [T, O, k, k, I] and db [T, O], the gradients of the weights; db may be NULL. */
int NAME(conv_weight)(const real *x, const real *dy, real *dw, real *db, const given *of)
{
    const shape prepared = prepare(of), *s = &prepared;
    const place *places = s->places;
    const int64_t taps = s->size * s->size, count = taps * s->in, apart = s->out;
    const int64_t pixels = s->batch * s->out_height * s->out_width;
    const int64_t image = s->batch * s->height * s->width * s->in;
    real *zeros = calloc(s->in, sizeof(real));
    const real *rows[PIXELS];
    if (!zeros || !places) {
        free(zeros), free(s->places);
        return 1;
    }
    memset(dw, 0, sizeof(real) * (s->tasks * s->out * count));
    if (db)
        memset(db, 0, sizeof(real) * (s->tasks * s->out));
    for (int64_t t = 0; t < s->tasks; t++)
        for (int64_t first = 0; first < pixels; first += PIXELS) {
            const int64_t block = pixels - first < PIXELS ? pixels - first : PIXELS;
            const real *d = dy + (t * pixels + first) * apart;
            if (db)
                for (int64_t p = 0; p < block; p++)
                    for (int64_t o = 0; o < s->out; o++)
                        db[t * s->out + o] += d[p * apart + o];
            for (int64_t tap = 0; tap < taps; tap++) {
                for (int64_t p = 0; p < block; p++) {
                    const int64_t from = NAME(source)(s, places + first + p, tap);
                    rows[p] = from < 0 ? zeros : x + t * image + from;
                }
                for (int64_t o = 0; o < s->out; o += 4) {
                    int64_t i = 0;
#define STEP(n)                                                                            \
    for (; i + n * LANES <= s->in; i += n * LANES) {                                       \
        real *to[4];                                                                       \
        for (int j = 0; j < 4; j++)                                                        \
            to[j] = dw + ((t * s->out + o + j) * taps + tap) * s->in + i;                  \
        NAME(weight_tile)(n, block, rows, i, d + o, apart, to);                            \
    }
                    STEP(4) STEP(2) STEP(1)
#undef STEP
                }
            }
        }
    free(zeros), free(s->places);
    return 0;
}

#undef VEC
#undef LANES
#undef AT
