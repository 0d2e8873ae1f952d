// The part of cuBLAS that ggml uses, on the CPU: C = alpha*op(A)*op(B) + beta*C, column by column, sums in F32.

#include "stream.h"

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <string.h>

#include <vector>

struct matrix {
    void * data;
    cudaDataType type;
    int pitch; // elements from one column to the next

    size_t size() const { return type == CUDA_R_32F ? 4 : 2; }

    float get(int row, int column) const {
        const char * p = (const char *) data + (row + (size_t) column * pitch) * size();
        if (type == CUDA_R_32F) {
            return *(const float *) p;
        }
        if (type == CUDA_R_16F) {
            return (float) *(const _Float16 *) p;
        }
        const uint32_t bits = (uint32_t) * (const uint16_t *) p << 16;
        float res;
        memcpy(&res, &bits, sizeof(res));
        return res;
    }

    void set(int row, int column, float x) const {
        char * p = (char *) data + (row + (size_t) column * pitch) * size();
        if (type == CUDA_R_32F) {
            *(float *) p = x;
        } else if (type == CUDA_R_16F) {
            *(_Float16 *) p = (_Float16) x;
        } else {
            uint32_t bits;
            memcpy(&bits, &x, sizeof(bits));
            *(uint16_t *) p = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
        }
    }
};

struct handle {
    cudaStream_t stream = nullptr;
};

static cudaStream_t stream_of(cublasHandle_t h) {
    return ((handle *) h)->stream;
}

static void multiply(cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, float alpha, const matrix & a,
                     const matrix & b, float beta, const matrix & c) {
    std::vector<float> rows((size_t) m * k);
    std::vector<float> columns((size_t) n * k);
    for (int d = 0; d < k; ++d) {
        for (int i = 0; i < m; ++i) {
            rows[(size_t) i * k + d] = op_a == CUBLAS_OP_N ? a.get(i, d) : a.get(d, i);
        }
        for (int j = 0; j < n; ++j) {
            columns[(size_t) j * k + d] = op_b == CUBLAS_OP_N ? b.get(d, j) : b.get(j, d);
        }
    }
    for (int j = 0; j < n; ++j) {
        for (int i = 0; i < m; ++i) {
            float sum = 0.0f;
            for (int d = 0; d < k; ++d) {
                sum += rows[(size_t) i * k + d] * columns[(size_t) j * k + d];
            }
            c.set(i, j, alpha * sum + (beta == 0.0f ? 0.0f : beta * c.get(i, j)));
        }
    }
}

static float factor(const void * p, cublasComputeType_t type) {
    return type == CUBLAS_COMPUTE_16F ? (float) *(const _Float16 *) p : *(const float *) p;
}

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t * h) {
    *h = (cublasHandle_t) new handle;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t h) {
    delete (handle *) h;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) {
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t h, cudaStream_t stream) {
    ((handle *) h)->stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void *, size_t) {
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSgemm_v2(cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                              const float * alpha, const float * a, int lda, const float * b, int ldb,
                              const float * beta, float * c, int ldc) {
    return cublasGemmEx(h, op_a, op_b, m, n, k, alpha, a, CUDA_R_32F, lda, b, CUDA_R_32F, ldb, beta, c, CUDA_R_32F, ldc,
                        CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}

cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                            const void * alpha, const void * a, cudaDataType type_a, int lda, const void * b,
                            cudaDataType type_b, int ldb, const void * beta, void * c, cudaDataType type_c, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algo) {
    return cublasGemmStridedBatchedEx(h, op_a, op_b, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c,
                                      type_c, ldc, 0, 1, compute, algo);
}

cublasStatus_t cublasGemmBatchedEx(cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n,
                                   int k, const void * alpha, const void * const a[], cudaDataType type_a, int lda,
                                   const void * const b[], cudaDataType type_b, int ldb, const void * beta,
                                   void * const c[], cudaDataType type_c, int ldc, int n_batch,
                                   cublasComputeType_t compute, cublasGemmAlgo_t) {
    const float scale = factor(alpha, compute);
    const float old   = factor(beta, compute);
    ptx_submit(stream_of(h), [=] { // the pointers are on the device too
        for (int i = 0; i < n_batch; ++i) {
            multiply(op_a, op_b, m, n, k, scale, { (void *) a[i], type_a, lda }, { (void *) b[i], type_b, ldb }, old,
                     { c[i], type_c, ldc });
        }
    });
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m,
                                          int n, int k, const void * alpha, const void * a, cudaDataType type_a,
                                          int lda, long long stride_a, const void * b, cudaDataType type_b, int ldb,
                                          long long stride_b, const void * beta, void * c, cudaDataType type_c, int ldc,
                                          long long stride_c, int n_batch, cublasComputeType_t compute,
                                          cublasGemmAlgo_t) {
    const float scale = factor(alpha, compute);
    const float old   = factor(beta, compute);
    ptx_submit(stream_of(h), [=] {
        for (int i = 0; i < n_batch; ++i) {
            matrix x = { (void *) a, type_a, lda };
            matrix y = { (void *) b, type_b, ldb };
            matrix z = { c, type_c, ldc };
            x.data   = (char *) x.data + i * stride_a * x.size();
            y.data   = (char *) y.data + i * stride_b * y.size();
            z.data   = (char *) z.data + i * stride_c * z.size();
            multiply(op_a, op_b, m, n, k, scale, x, y, old, z);
        }
    });
    return CUBLAS_STATUS_SUCCESS;
}
}
