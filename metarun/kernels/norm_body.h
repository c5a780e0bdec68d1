/* The functions of norm.c for one type `real`; see there for the formulas. */

#define EACH for (int c = 0; c < width; c++)

/* Position of row (n, i, j) of a [N, H, W, C] array, from channel `first` on. */
#define AT(base, h, w, n, i, j) ((base) + (((int64_t)(n) * (h) + (i)) * (w) + (j)) * channels + first)

/* out = act(pool(gain (z - mean) r + bias)); `which` gets the place in its window of each maximum. */
static void NAME(forward_one)(const real *z, const real *gain, const real *bias, real *out, uint8_t *which,
                        real *mean, real *r, int64_t N, int64_t H, int64_t W, int64_t channels,
                        int pool, double eps, double slope_)
{
    const real slope = (real)slope_;
    const int64_t rows = N * H * W, PH = H / pool, PW = W / pool;
    for (int64_t first = 0; first < channels; first += BLOCK) {
        const int width = channels - first < BLOCK ? (int)(channels - first) : BLOCK;
        double total[BLOCK] = {0};
        real m[BLOCK], scale[BLOCK], shift[BLOCK];
        for (int64_t row = 0; row < rows;) { /* short sums in `real`, long ones in double */
            real part[BLOCK] = {0};
            const int64_t end = row + 64 < rows ? row + 64 : rows;
            for (; row < end; row++) {
                const real *p = z + row * channels + first;
                EACH part[c] += p[c];
            }
            EACH total[c] += part[c];
        }
        EACH m[c] = (real)(total[c] / (double)rows), total[c] = 0;
        for (int64_t row = 0; row < rows;) {
            real part[BLOCK] = {0};
            const int64_t end = row + 64 < rows ? row + 64 : rows;
            for (; row < end; row++) {
                const real *p = z + row * channels + first;
                EACH part[c] += (p[c] - m[c]) * (p[c] - m[c]);
            }
            EACH total[c] += part[c];
        }
        EACH {
            mean[first + c] = m[c];
            r[first + c] = (real)(1.0 / sqrt(total[c] / (double)rows + eps));
            scale[c] = r[first + c] * gain[first + c];
            shift[c] = bias[first + c];
        }
        if (pool == 1) {
            for (int64_t row = 0; row < rows; row++) {
                const real *p = z + row * channels + first;
                real *o = out + row * channels + first;
                EACH {
                    const real y = (p[c] - m[c]) * scale[c] + shift[c];
                    o[c] = y > 0 ? y : slope * y;
                }
            }
            continue;
        }
        for (int64_t n = 0; n < N; n++)
            for (int64_t i = 0; i < PH; i++)
                for (int64_t j = 0; j < PW; j++) {
                    real *o = AT(out, PH, PW, n, i, j);
                    uint8_t *k = AT(which, PH, PW, n, i, j);
                    real best[BLOCK];
                    uint8_t place[BLOCK];
                    for (int at = 0; at < 4; at++) {
                        const real *p = AT(z, H, W, n, 2 * i + at / 2, 2 * j + at % 2);
                        EACH {
                            const real y = (p[c] - m[c]) * scale[c] + shift[c];
                            const int more = at == 0 || y > best[c];
                            best[c] = more ? y : best[c];
                            place[c] = more ? (uint8_t)at : place[c];
                        }
                    }
                    EACH {
                        o[c] = best[c] > 0 ? best[c] : slope * best[c];
                        k[c] = place[c];
                    }
                }
    }
}

/* Fill u[BLOCK] for row (n, i, j) and x[BLOCK] with the normalised input. */
#define ROW_U_AND_X(n, i, j)                                                       \
    const real *p = AT(z, H, W, n, i, j);                                          \
    const int inside = (i) / pool < PH && (j) / pool < PW;                         \
    const uint8_t at = (uint8_t)(((i) % pool) * pool + (j) % pool);                \
    const real *d = inside ? AT(dout, PH, PW, n, (i) / pool, (j) / pool) : nothing; \
    const uint8_t *k = inside && pool == 2 ? AT(which, PH, PW, n, (i) / 2, (j) / 2) : zeros; \
    real u[BLOCK], x[BLOCK];                                                       \
    EACH {                                                                         \
        x[c] = (p[c] - m[c]) * rs[c];                                              \
        const real y = (p[c] - m[c]) * scale[c] + bs[c]; /* as in forward, bit by bit */ \
        const real chosen = (pool == 1 || k[c] == at) ? d[c] : 0;                  \
        u[c] = y > 0 ? chosen : slope * chosen;                                    \
    }

#define LOAD_CHANNELS                                                                       \
    const int width = channels - first < BLOCK ? (int)(channels - first) : BLOCK;           \
    real m[BLOCK], rs[BLOCK], scale[BLOCK], bs[BLOCK];                                      \
    EACH m[c] = mean[first + c], rs[c] = r[first + c], scale[c] = rs[c] * gain[first + c],  \
         bs[c] = bias[first + c];

/* dz, dgain and dbias from the gradient `dout` of the output. */
static void NAME(backward_one)(const real *dout, const real *z, const real *gain, const real *bias,
                         const uint8_t *which, const real *mean, const real *r, real *dz,
                         real *dgain, real *dbias, int64_t N, int64_t H, int64_t W,
                         int64_t channels, int pool, double slope_)
{
    const real slope = (real)slope_, nothing[BLOCK] = {0};
    const uint8_t zeros[BLOCK] = {0};
    const int64_t PH = H / pool, PW = W / pool;
    const double rows = (double)(N * H * W);
    for (int64_t first = 0; first < channels; first += BLOCK) {
        LOAD_CHANNELS
        double su[BLOCK] = {0}, sux[BLOCK] = {0};
        real mu[BLOCK], mux[BLOCK];
        for (int64_t n = 0; n < N; n++)
            for (int64_t i = 0; i < PH * pool; i++) {
                real pu[BLOCK] = {0}, pux[BLOCK] = {0};
                for (int64_t j = 0; j < PW * pool; j++) {
                    ROW_U_AND_X(n, i, j)
                    EACH pu[c] += u[c], pux[c] += u[c] * x[c];
                }
                EACH su[c] += pu[c], sux[c] += pux[c];
            }
        EACH {
            dbias[first + c] = (real)su[c], dgain[first + c] = (real)sux[c];
            mu[c] = (real)(su[c] / rows), mux[c] = (real)(sux[c] / rows);
        }
        for (int64_t n = 0; n < N; n++)
            for (int64_t i = 0; i < H; i++)
                for (int64_t j = 0; j < W; j++) {
                    ROW_U_AND_X(n, i, j)
                    real *o = AT(dz, H, W, n, i, j);
                    EACH o[c] = scale[c] * (u[c] - mu[c] - x[c] * mux[c]);
                }
    }
}

/* Gradients of <Z, dz> + <G, dgain> + <B, dbias> for dout, z and gain. */
static void NAME(double_backward_one)(const real *Z, const real *G, const real *B, const real *dout,
                                const real *z, const real *gain, const real *bias,
                                const uint8_t *which, const real *mean, const real *r, real *ddout,
                                real *ddz, real *ddgain, int64_t N, int64_t H, int64_t W,
                                int64_t channels, int pool, double slope_)
{
    const real slope = (real)slope_, nothing[BLOCK] = {0};
    const uint8_t zeros[BLOCK] = {0};
    const int64_t PH = H / pool, PW = W / pool;
    const double rows = (double)(N * H * W);
    for (int64_t first = 0; first < channels; first += BLOCK) {
        LOAD_CHANNELS
        double su[BLOCK] = {0}, sux[BLOCK] = {0}, sZ[BLOCK] = {0}, sZx[BLOCK] = {0}, suZ[BLOCK] = {0};
        for (int64_t n = 0; n < N; n++)
            for (int64_t i = 0; i < H; i++) {
                real pu[BLOCK] = {0}, pux[BLOCK] = {0}, pZ[BLOCK] = {0}, pZx[BLOCK] = {0},
                     puZ[BLOCK] = {0};
                for (int64_t j = 0; j < W; j++) {
                    ROW_U_AND_X(n, i, j)
                    const real *q = AT(Z, H, W, n, i, j);
                    EACH pu[c] += u[c], pux[c] += u[c] * x[c], pZ[c] += q[c], pZx[c] += q[c] * x[c],
                        puZ[c] += u[c] * q[c];
                }
                EACH su[c] += pu[c], sux[c] += pux[c], sZ[c] += pZ[c], sZx[c] += pZx[c],
                    suZ[c] += puZ[c];
            }
        real mZ[BLOCK], mZx[BLOCK], mux[BLOCK], mw[BLOCK], mwx[BLOCK], pull[BLOCK],
            cg[BLOCK], cb[BLOCK];
        EACH {
            const double s = suZ[c] - sZ[c] * su[c] / rows - sZx[c] * sux[c] / rows;
            const double gr = scale[c], u1 = su[c] / rows, ux = sux[c] / rows;
            const double Z1 = sZ[c] / rows, Zx = sZx[c] / rows, g = G[first + c];
            mZ[c] = (real)Z1, mZx[c] = (real)Zx, mux[c] = (real)ux;
            mw[c] = (real)(g * u1 - gr * (Z1 * ux + u1 * Zx));
            mwx[c] = (real)(g * ux - gr * 2 * Zx * ux);
            pull[c] = (real)(gr * rs[c] * s / rows);
            cg[c] = (real)g, cb[c] = B[first + c];
            ddgain[first + c] = (real)(rs[c] * s);
        }
        for (int64_t n = 0; n < N; n++)
            for (int64_t i = 0; i < H; i++)
                for (int64_t j = 0; j < W; j++) {
                    ROW_U_AND_X(n, i, j)
                    const real *q = AT(Z, H, W, n, i, j);
                    real *o = AT(ddz, H, W, n, i, j);
                    EACH {
                        const real w = cg[c] * u[c] - scale[c] * (q[c] * mux[c] + u[c] * mZx[c]);
                        o[c] = rs[c] * (w - mw[c] - x[c] * mwx[c]) - pull[c] * x[c];
                    }
                    if (!inside)
                        continue;
                    real *e = AT(ddout, PH, PW, n, i / pool, j / pool);
                    EACH {
                        const real v =
                            scale[c] * (q[c] - mZ[c] - x[c] * mZx[c]) + cg[c] * x[c] + cb[c];
                        const real masked = (p[c] - m[c]) * scale[c] + bs[c] > 0 ? v : slope * v;
                        e[c] = (pool == 1 || k[c] == at) ? masked : e[c];
                    }
                }
    }
}

int NAME(norm_forward)(const real *z, const real *gain, const real *bias, real *out, uint8_t *which,
                        real *mean, real *r, const shape *s, int pool, double eps, double slope)
{
    const int64_t full = s->n * s->h * s->w * s->c, c = s->c;
    const int64_t part = s->n * (s->h / pool) * (s->w / pool) * c;
    for (int64_t t = 0; t < s->tasks; t++)
        NAME(forward_one)(z + t * full, gain + t * c, bias + t * c, out + t * part,
                          which + (pool == 2 ? t * part : 0), mean + t * c, r + t * c, s->n, s->h,
                          s->w, c, pool, eps, slope);
    return 0;
}

int NAME(norm_backward)(const real *dout, const real *z, const real *gain, const real *bias,
                         const uint8_t *which, const real *mean, const real *r, real *dz,
                         real *dgain, real *dbias, const shape *s, int pool, double slope)
{
    const int64_t full = s->n * s->h * s->w * s->c, c = s->c;
    const int64_t part = s->n * (s->h / pool) * (s->w / pool) * c;
    for (int64_t t = 0; t < s->tasks; t++)
        NAME(backward_one)(dout + t * part, z + t * full, gain + t * c, bias + t * c,
                           which + (pool == 2 ? t * part : 0), mean + t * c, r + t * c,
                           dz + t * full, dgain + t * c, dbias + t * c, s->n, s->h, s->w, c, pool,
                           slope);
    return 0;
}

int NAME(norm_double_backward)(const real *Z, const real *G, const real *B, const real *dout,
                                const real *z, const real *gain, const real *bias,
                                const uint8_t *which, const real *mean, const real *r, real *ddout,
                                real *ddz, real *ddgain, const shape *s, int pool, double slope)
{
    const int64_t full = s->n * s->h * s->w * s->c, c = s->c;
    const int64_t part = s->n * (s->h / pool) * (s->w / pool) * c;
    for (int64_t t = 0; t < s->tasks; t++)
        NAME(double_backward_one)(Z + t * full, G + t * c, B + t * c, dout + t * part, z + t * full,
                                  gain + t * c, bias + t * c, which + (pool == 2 ? t * part : 0),
                                  mean + t * c, r + t * c, ddout + t * part, ddz + t * full,
                                  ddgain + t * c, s->n, s->h, s->w, c, pool, slope);
    return 0;
}

#undef EACH
#undef AT
#undef ROW_U_AND_X
#undef LOAD_CHANNELS
