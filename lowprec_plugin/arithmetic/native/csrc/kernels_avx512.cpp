#define LOWPREC_NAMESPACE lowprec_avx512
#include "kernels.inl"
#include "wire.inl"
LOWPREC_TABLE(avx512)
