/* libcuda.so.1: as much of the driver as torch looks for. It knows one context, and runs nothing. */
typedef int Result;
enum { SUCCESS = 0, NOT_SUPPORTED = 801 };

Result cuInit(unsigned flags) { return SUCCESS; }
Result cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
Result cuDeviceGet(int *device, int ordinal) { *device = ordinal; return SUCCESS; }
Result cuDeviceGetCount(int *n) { *n = 1; return SUCCESS; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) { *value = 1; return SUCCESS; }
/* Of the runtime, which is preloaded. torch asks before it makes a device the current one again. */
extern long standin_uses(int device) __attribute__((weak));
Result cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *is_active) {
    *flags = 0;
    *is_active = !standin_uses || standin_uses(device) > 0;
    return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return SUCCESS; }
Result cuCtxGetCurrent(void **context) { *context = (void *)1; return SUCCESS; }
Result cuCtxSetCurrent(void *context) { return SUCCESS; }
Result cuGetErrorString(int error, const char **text) {
    *text = "an error of the stand-in driver";
    return SUCCESS;
}

#define UNSUPPORTED(name) Result name(void) { return NOT_SUPPORTED; }
UNSUPPORTED(cuPointerGetAttribute)
UNSUPPORTED(cuFuncGetAttribute)
UNSUPPORTED(cuFuncSetAttribute)
UNSUPPORTED(cuFuncSetCacheConfig)
UNSUPPORTED(cuLaunchCooperativeKernel)
UNSUPPORTED(cuLaunchKernel)
UNSUPPORTED(cuLinkAddData_v2)
UNSUPPORTED(cuLinkComplete)
UNSUPPORTED(cuLinkCreate_v2)
UNSUPPORTED(cuModuleGetFunction)
UNSUPPORTED(cuModuleLoad)
UNSUPPORTED(cuModuleLoadData)
UNSUPPORTED(cuModuleLoadDataEx)
UNSUPPORTED(cuModuleUnload)
UNSUPPORTED(cuOccupancyMaxActiveBlocksPerMultiprocessor)
UNSUPPORTED(cuTensorMapEncodeTiled)
