/* What patches are on average, for one type `real`; see first.c. */

/* The numbers at tap `a` of `windows` patches in a row, and zeros up to whole vectors. */
INLINE void NAME(tap_row)(const shape *s, const real *from, int64_t windows, int64_t vectors,
                          real *to)
{
    for (int64_t w = 0; w < windows; w++)
        to[w] = from[w * s->stride];
    for (int64_t w = windows; w < vectors * LANES; w++)
        to[w] = 0;
}

/* sums [K + 1][K + 1] += products of the taps over one row of patches; the last tap is one. */
INLINE void NAME(products)(const real *rows, int64_t vectors, int64_t taps, VEC *sums)
{
    for (int64_t a = 0; a < taps; a += THREE)
        for (int64_t b = a; b < taps; b += THREE) {
            VEC sum[THREE][THREE];
            for (int i = 0; i < THREE; i++)
                for (int j = 0; j < THREE; j++)
                    sum[i][j] = sums[(a + i) * taps + b + j];
            for (int64_t v = 0; v < vectors; v++)
                for (int i = 0; i < THREE; i++)
                    for (int j = 0; j < THREE; j++)
                        sum[i][j] +=
                            AT(rows, (a + i) * vectors + v) * AT(rows, (b + j) * vectors + v);
            for (int i = 0; i < THREE; i++)
                for (int j = 0; j < THREE; j++)
                    sums[(a + i) * taps + b + j] = sum[i][j];
        }
}

/* Add what lanes of one image hold to the sums of all, and begin again. */
static void NAME(collect)(int64_t taps, VEC *sums, double *all)
{
    for (int64_t a = 0; a < taps; a++)
        for (int64_t b = a - a % THREE; b < taps; b++) {
            for (int l = 0; l < LANES; l++)
                all[a * taps + b] += sums[a * taps + b][l];
            sums[a * taps + b] = (VEC){0};
        }
}

/* level [T, I]: about the mean of x; mean [T, K] and covariance [T, K, K]: of patches less that. */
int NAME(first_moments)(const real *x, real *level, double *mean, double *covariance,
                        const shape *s)
{
    OPEN
    (void)cells_h, (void)cells_w;
    const int64_t vectors = (s->out_width + LANES - 1) / LANES;
    const int64_t with_one = (taps + THREE) / THREE * THREE; /* a tap that is 1, and zeros */
    const double count = (double)(s->batch * s->out_height * s->out_width);
    VEC *rows = aligned_alloc(64, 64 * (with_one * vectors));
    VEC *sums = aligned_alloc(64, 64 * (with_one * with_one));
    double *all = malloc(sizeof(double) * (with_one * with_one));
    if (!rows || !sums || !all) {
        free(framed), free(rows), free(sums), free(all);
        return 1;
    }
    const real one = 1;
    memset(rows, 0, 64 * (with_one * vectors));
    memset(sums, 0, 64 * (with_one * with_one));
    for (int64_t w = 0; w < s->out_width; w++)
        ((real *)(rows + taps * vectors))[w] = one;
    for (int64_t t = 0; t < s->tasks; t++) {
        const real *images = x + t * s->batch * image;
        for (int64_t i = 0; i < s->in; i++) {
            double sum = 0;
            for (int64_t b = 0; b < s->batch; b++)
                for (int64_t p = 0; p < s->height * s->width; p++)
                    sum += images[b * image + i * s->height * s->width + p];
            level[t * s->in + i] = (real)(sum / (double)(s->batch * s->height * s->width));
        }
        memset(all, 0, sizeof(double) * (with_one * with_one));
        for (int64_t b = 0; b < s->batch; b++) {
            NAME(frame)(s, images + b * image, level + t * s->in, framed);
            for (int64_t h = 0; h < s->out_height; h++) {
                for (int64_t k = 0; k < taps; k++)
                    NAME(tap_row)(s, PATCH(h, 0) + under[k], s->out_width, vectors,
                                  (real *)(rows + k * vectors));
                NAME(products)((const real *)rows, vectors, with_one, sums);
            }
            NAME(collect)(with_one, sums, all);
        }
        for (int64_t a = 0; a < taps; a++)
            mean[t * taps + a] = all[a * with_one + taps] / count;
        for (int64_t a = 0; a < taps; a++)
            for (int64_t b = a; b < taps; b++)
                covariance[(t * taps + a) * taps + b] = covariance[(t * taps + b) * taps + a] =
                    all[a * with_one + b] / count - mean[t * taps + a] * mean[t * taps + b];
    }
    free(framed), free(rows), free(sums), free(all);
    return 0;
}
