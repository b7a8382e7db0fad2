#define LOWPREC_NAMESPACE lowprec_baseline
#include "kernels.inl"
LOWPREC_TABLE(baseline)
