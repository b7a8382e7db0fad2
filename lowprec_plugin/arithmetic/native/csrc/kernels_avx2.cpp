#define LOWPREC_NAMESPACE lowprec_avx2
#include "kernels.inl"
#include "wire.inl"
LOWPREC_TABLE(avx2)
