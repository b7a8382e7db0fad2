#define LOWPREC_NAMESPACE lowprec_baseline
#include "kernels.inl"
#include "wire.inl"
LOWPREC_TABLE(baseline)
