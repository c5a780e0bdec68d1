/* The functions of norm.c for one type `real`; see there for the formulas. */

#define EACH for (int c = 0; c < width; c++)
/* Row (n, i, j) of a [N, H, W, C] array, from channel `first` on. */
#define AT(base, h, w, n, i, j) ((base) + (((int64_t)(n) * (h) + (i)) * (w) + (j)) * C + first)

typedef struct {
    int64_t N, H, W, C;
    const real *z, *gain, *bias, *dout, *peak, *mean, *r;
    const uint8_t *which;
    real slope;
} NAME(given);

#define OPEN                                                                              \
    const int64_t N = g->N, H = g->H, W = g->W, C = g->C, PH = H / pool, PW = W / pool;   \
    const double rows = (double)(N * H * W);                                              \
    const real slope = g->slope;

#define LOAD_CHANNELS                                                                     \
    real m[BLOCK], rs[BLOCK], scale[BLOCK], bs[BLOCK];                                    \
    EACH m[c] = g->mean[first + c], rs[c] = g->r[first + c],                              \
         scale[c] = rs[c] * g->gain[first + c], bs[c] = g->bias[first + c];

/* For a cell of the output: its gradient u of y, its normalised input x, its place `k`. */
#define CELL(n, i, j)                                                                     \
    const real *d = AT(g->dout, PH, PW, n, i, j);                                         \
    const real *top = AT(pool == 2 ? g->peak : g->z, PH, PW, n, i, j);                    \
    const uint8_t *k = pool == 2 ? AT(g->which, PH, PW, n, i, j) : NULL;                  \
    real u[BLOCK], x[BLOCK];                                                              \
    EACH {                                                                                \
        const real far = pool == 2 ? top[c] : top[c] - m[c];                              \
        x[c] = far * rs[c];                                                               \
        u[c] = far * scale[c] + bs[c] > 0 ? d[c] : slope * d[c];                          \
    }

#define EACH_CELL                                                                         \
    for (int64_t n = 0; n < N; n++)                                                       \
        for (int64_t i = 0; i < PH; i++)                                                  \
            for (int64_t j = 0; j < PW; j++)

/* Rows and columns that no window covers; they count in the statistics all the same. */
#define EACH_UNCOVERED                                                                    \
    for (int64_t n = 0; pool == 2 && (H % 2 || W % 2) && n < N; n++)                      \
        for (int64_t i = 0; i < H; i++)                                                   \
            for (int64_t j = i < PH * 2 ? PW * 2 : 0; j < W; j++)

INLINE void NAME(forward_block)(const int pool, const int width, const NAME(given) *g,
                                int64_t first, real *out, real *peak, uint8_t *which, real *mean,
                                real *r, double eps)
{
    OPEN
    const int64_t count = N * H * W, few = count < 64 ? count : 64;
    double sum[BLOCK] = {0}, squares[BLOCK] = {0};
    real near[BLOCK] = {0}, m[BLOCK], scale[BLOCK], shift[BLOCK];
    for (int64_t row = 0; row < few; row++) { /* a point near the mean, against cancellation */
        const real *p = g->z + row * C + first;
        EACH near[c] += p[c];
    }
    EACH near[c] /= (real)few;
    for (int64_t row = 0; row < count;) { /* short sums in `real`, long ones in double */
        real part[BLOCK] = {0}, part2[BLOCK] = {0};
        const int64_t end = row + 64 < count ? row + 64 : count;
        for (; row < end; row++) {
            const real *p = g->z + row * C + first;
            EACH {
                const real far = p[c] - near[c];
                part[c] += far, part2[c] += far * far;
            }
        }
        EACH sum[c] += part[c], squares[c] += part2[c];
    }
    EACH {
        const double off = sum[c] / rows, variance = squares[c] / rows - off * off;
        m[c] = mean[first + c] = (real)(near[c] + off);
        r[first + c] = (real)(1.0 / sqrt((variance < 0 ? 0 : variance) + eps));
        scale[c] = r[first + c] * g->gain[first + c], shift[c] = g->bias[first + c];
    }
    EACH_CELL {
        real *o = AT(out, PH, PW, n, i, j), best[BLOCK], far[BLOCK];
        uint8_t place[BLOCK];
        for (int at = 0; at < pool * pool; at++) {
            const real *p = AT(g->z, H, W, n, pool * i + at / pool, pool * j + at % pool);
            EACH {
                const real d = p[c] - m[c], y = d * scale[c] + shift[c];
                const int more = at == 0 || y > best[c] || y != y;
                best[c] = more ? y : best[c], far[c] = more ? d : far[c];
                place[c] = more ? (uint8_t)at : place[c];
            }
        }
        EACH o[c] = best[c] > 0 ? best[c] : slope * best[c];
        if (pool == 2) {
            real *top = AT(peak, PH, PW, n, i, j);
            uint8_t *k = AT(which, PH, PW, n, i, j);
            EACH top[c] = far[c], k[c] = place[c];
        }
    }
}

INLINE void NAME(backward_block)(const int pool, const int width, const NAME(given) *g,
                                 int64_t first, real *dz, real *dgain, real *dbias)
{
    OPEN
    LOAD_CHANNELS
    double su[BLOCK] = {0}, sux[BLOCK] = {0};
    real mu[BLOCK], mux[BLOCK];
    for (int64_t n = 0; n < N; n++)
        for (int64_t i = 0; i < PH; i++) {
            real pu[BLOCK] = {0}, pux[BLOCK] = {0};
            for (int64_t j = 0; j < PW; j++) {
                CELL(n, i, j)
                EACH pu[c] += u[c], pux[c] += u[c] * x[c];
            }
            EACH su[c] += pu[c], sux[c] += pux[c];
        }
    EACH {
        dbias[first + c] = (real)su[c], dgain[first + c] = (real)sux[c];
        mu[c] = (real)(su[c] / rows), mux[c] = (real)(sux[c] / rows) * rs[c];
    }
    EACH_CELL {
        CELL(n, i, j)
        for (int at = 0; at < pool * pool; at++) {
            const int64_t h = pool * i + at / pool, w = pool * j + at % pool;
            const real *p = AT(g->z, H, W, n, h, w);
            real *o = AT(dz, H, W, n, h, w);
            EACH {
                const real mine = pool == 1 || k[c] == at ? u[c] : 0;
                o[c] = scale[c] * (mine - mu[c] - (p[c] - m[c]) * mux[c]);
            }
        }
    }
    EACH_UNCOVERED {
        const real *p = AT(g->z, H, W, n, i, j);
        real *o = AT(dz, H, W, n, i, j);
        EACH o[c] = scale[c] * (-mu[c] - (p[c] - m[c]) * mux[c]);
    }
}

INLINE void NAME(double_backward_block)(const int pool, const int width, const NAME(given) *g,
                                        int64_t first, const real *Z, const real *G,
                                        const real *B, real *ddout, real *ddz, real *ddgain)
{
    OPEN
    LOAD_CHANNELS
    double su[BLOCK] = {0}, sux[BLOCK] = {0}, sZ[BLOCK] = {0}, sZx[BLOCK] = {0}, suZ[BLOCK] = {0};
    for (int64_t n = 0; n < N; n++)
        for (int64_t i = 0; i < PH; i++) {
            real pu[BLOCK] = {0}, pux[BLOCK] = {0}, pZ[BLOCK] = {0}, pZx[BLOCK] = {0},
                 puZ[BLOCK] = {0};
            for (int64_t j = 0; j < PW; j++) {
                CELL(n, i, j)
                EACH pu[c] += u[c], pux[c] += u[c] * x[c];
                for (int at = 0; at < pool * pool; at++) {
                    const int64_t h = pool * i + at / pool, w = pool * j + at % pool;
                    const real *p = AT(g->z, H, W, n, h, w), *q = AT(Z, H, W, n, h, w);
                    EACH {
                        pZ[c] += q[c], pZx[c] += q[c] * ((p[c] - m[c]) * rs[c]);
                        puZ[c] += pool == 1 || k[c] == at ? u[c] * q[c] : 0;
                    }
                }
            }
            EACH su[c] += pu[c], sux[c] += pux[c], sZ[c] += pZ[c], sZx[c] += pZx[c],
                suZ[c] += puZ[c];
        }
    EACH_UNCOVERED {
        const real *p = AT(g->z, H, W, n, i, j), *q = AT(Z, H, W, n, i, j);
        EACH sZ[c] += q[c], sZx[c] += q[c] * ((p[c] - m[c]) * rs[c]);
    }
    real mZ[BLOCK], mZx[BLOCK], mux[BLOCK], mw[BLOCK], mwx[BLOCK], cg[BLOCK], cb[BLOCK];
    EACH {
        const double s = suZ[c] - sZ[c] * su[c] / rows - sZx[c] * sux[c] / rows;
        const double gr = scale[c], u1 = su[c] / rows, ux = sux[c] / rows;
        const double Z1 = sZ[c] / rows, Zx = sZx[c] / rows, gc = G[first + c];
        mZ[c] = (real)Z1, mZx[c] = (real)Zx, mux[c] = (real)ux;
        mw[c] = (real)(gc * u1 - gr * (Z1 * ux + u1 * Zx));
        /* Two terms along x: the projection of w, and what r does with z. */
        mwx[c] = (real)(rs[c] * (gc * ux - gr * 2 * Zx * ux) + gr * rs[c] * s / rows);
        cg[c] = (real)gc, cb[c] = B[first + c];
        ddgain[first + c] = (real)(rs[c] * s);
    }
    EACH_CELL {
        CELL(n, i, j)
        real *e = AT(ddout, PH, PW, n, i, j);
        for (int at = 0; at < pool * pool; at++) {
            const int64_t h = pool * i + at / pool, w = pool * j + at % pool;
            const real *p = AT(g->z, H, W, n, h, w), *q = AT(Z, H, W, n, h, w);
            real *o = AT(ddz, H, W, n, h, w);
            EACH {
                const int here = pool == 1 || k[c] == at;
                const real mine = here ? u[c] : 0, far = (p[c] - m[c]) * rs[c];
                const real v = cg[c] * mine - scale[c] * (q[c] * mux[c] + mine * mZx[c]);
                o[c] = rs[c] * (v - mw[c]) - far * mwx[c];
                const real pull = scale[c] * (q[c] - mZ[c] - x[c] * mZx[c]) + cg[c] * x[c] + cb[c];
                e[c] = here ? pull : e[c];
            }
        }
        EACH {
            const real far = pool == 2 ? top[c] : top[c] - m[c];
            e[c] = far * scale[c] + bs[c] > 0 ? e[c] : slope * e[c];
        }
    }
    EACH_UNCOVERED {
        const real *p = AT(g->z, H, W, n, i, j), *q = AT(Z, H, W, n, i, j);
        real *o = AT(ddz, H, W, n, i, j);
        EACH o[c] = rs[c] * (-scale[c] * q[c] * mux[c] - mw[c]) - (p[c] - m[c]) * rs[c] * mwx[c];
    }
}

/* Call a block's function with constants for what decides its loops. */
#define EACH_BLOCK(call)                                                                  \
    for (int64_t first = 0; first < s->c; first += BLOCK) {                               \
        const int left = s->c - first < BLOCK ? (int)(s->c - first) : BLOCK;              \
        if (pool == 2 && left == BLOCK)                                                   \
            call(2, BLOCK);                                                               \
        else if (pool == 2)                                                               \
            call(2, left);                                                                \
        else if (left == BLOCK)                                                           \
            call(1, BLOCK);                                                               \
        else                                                                              \
            call(1, left);                                                                \
    }
#define EACH_TASK                                                                         \
    const int64_t full = s->n * s->h * s->w * s->c, c = s->c;                             \
    const int64_t part = s->n * (s->h / pool) * (s->w / pool) * c;                        \
    const int64_t kept = pool == 2 ? part : 0;                                            \
    for (int64_t t = 0; t < s->tasks; t++)

int NAME(norm_forward)(const real *z, const real *gain, const real *bias, real *out, real *peak,
                       uint8_t *which, real *mean, real *r, const shape *s, int pool, double eps,
                       double slope)
{
    EACH_TASK {
        const NAME(given) g = {.N = s->n, .H = s->h, .W = s->w, .C = c, .z = z + t * full,
                               .gain = gain + t * c, .bias = bias + t * c, .slope = (real)slope};
#define CALL(pool, width)                                                                 \
    NAME(forward_block)(pool, width, &g, first, out + t * part, peak + t * kept,          \
                        which + t * kept, mean + t * c, r + t * c, eps)
        EACH_BLOCK(CALL)
#undef CALL
    }
    return 0;
}

#define GIVEN                                                                             \
    const NAME(given) g = {.N = s->n, .H = s->h, .W = s->w, .C = c, .z = z + t * full,    \
                           .gain = gain + t * c, .bias = bias + t * c,                    \
                           .dout = dout + t * part, .peak = peak + t * kept,              \
                           .which = which + t * kept, .mean = mean + t * c,               \
                           .r = r + t * c, .slope = (real)slope};

int NAME(norm_backward)(const real *dout, const real *z, const real *gain, const real *bias,
                        const real *peak, const uint8_t *which, const real *mean, const real *r,
                        real *dz, real *dgain, real *dbias, const shape *s, int pool, double slope)
{
    EACH_TASK {
        GIVEN
#define CALL(pool, width)                                                                 \
    NAME(backward_block)(pool, width, &g, first, dz + t * full, dgain + t * c, dbias + t * c)
        EACH_BLOCK(CALL)
#undef CALL
    }
    return 0;
}

int NAME(norm_double_backward)(const real *Z, const real *G, const real *B, const real *dout,
                               const real *z, const real *gain, const real *bias,
                               const real *peak, const uint8_t *which, const real *mean,
                               const real *r, real *ddout, real *ddz, real *ddgain, const shape *s,
                               int pool, double slope)
{
    EACH_TASK {
        GIVEN
#define CALL(pool, width)                                                                 \
    NAME(double_backward_block)(pool, width, &g, first, Z + t * full, G + t * c, B + t * c, \
                                ddout + t * part, ddz + t * full, ddgain + t * c)
        EACH_BLOCK(CALL)
#undef CALL
    }
    return 0;
}

#undef EACH
#undef AT
#undef OPEN
#undef LOAD_CHANNELS
#undef CELL
#undef EACH_CELL
#undef EACH_UNCOVERED
#undef EACH_BLOCK
#undef EACH_TASK
#undef GIVEN
