/* A stand-in for NVIDIA's libnvidia-ml.so.1, so that the real ctypes binding can be exercised without a GPU.
 *
 * What the fleet looks like is data: STANDIN_NVML_SCENARIO names a text file that is read again at nvmlInit and at every
 * nvmlDeviceGetCount, so a test can change it under a running agent. README.md beside this file describes its lines.
 *
 * Function names, struct layouts and codes are those of NVML's public interface, as pynvml declares them.
 * -DOLD_DRIVER leaves out the newest functions; -DMISMATCH builds a library that does not fit the kernel driver.
 */

#define _POSIX_C_SOURCE 200809L /* for setenv */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
    LIB_RM_VERSION_MISMATCH = 18,
    ARGUMENT_VERSION_MISMATCH = 25
};

enum { MAX_LINES = 4096, MAX_LINE = 512, MAX_GPUS = 64, NODE = -1 };

typedef struct {
    int gpu; /* NODE before the first "gpu" line */
    char text[MAX_LINE];
} Line;

typedef struct {
    char unused;
} Device;

static Line lines[MAX_LINES];
static int line_count, gpu_count, initialized;
static Device devices[MAX_GPUS];

static int load(void) {
    const char *path = getenv("STANDIN_NVML_SCENARIO");
    FILE *file = path ? fopen(path, "r") : NULL;
    char text[MAX_LINE];
    if (!file) return DRIVER_NOT_LOADED;
    line_count = gpu_count = 0;
    while (line_count < MAX_LINES && fgets(text, sizeof text, file)) {
        text[strcspn(text, "\n")] = 0;
        if (!text[0] || text[0] == '#') continue;
        if (!strcmp(text, "gpu")) {
            if (gpu_count < MAX_GPUS) gpu_count++;
            continue;
        }
        lines[line_count].gpu = gpu_count - 1;
        strcpy(lines[line_count++].text, text);
    }
    fclose(file);
    return SUCCESS;
}

/* The rest of the `nth` line that begins with `key` and a space, or NULL. */
static const char *value_of(int gpu, const char *key, int nth) {
    size_t length = strlen(key);
    for (int i = 0; i < line_count; i++)
        if (lines[i].gpu == gpu && !strncmp(lines[i].text, key, length) && lines[i].text[length] == ' ' && nth-- == 0)
            return lines[i].text + length + 1;
    return NULL;
}

static int index_of(const Device *device) {
    return device >= devices && device < devices + gpu_count ? (int)(device - devices) : NODE;
}

/* Where the value of `key` is, or the code to answer instead: the line says "!CODE", or there is no such line. */
static int find(int gpu, const char *key, const char **value) {
    if (!initialized) return UNINITIALIZED;
    *value = value_of(gpu, key, 0);
    if (!*value) return NOT_SUPPORTED;
    return (*value)[0] == '!' ? atoi(*value + 1) : SUCCESS;
}

static int find_on(const Device *device, const char *key, const char **value) {
    return index_of(device) == NODE ? INVALID_ARGUMENT : find(index_of(device), key, value);
}

static int copy(const char *value, char *buffer, unsigned size) {
    if (strlen(value) >= size) return INSUFFICIENT_SIZE;
    strcpy(buffer, value);
    return SUCCESS;
}

/* How often NVML was opened in this process, kept where it outlives the library's being unloaded. */
static int init_count(void) {
    const char *count = getenv("STANDIN_NVML_INIT_COUNT");
    return count ? atoi(count) : 0;
}

static void count_init(void) {
    char count[16];
    snprintf(count, sizeof count, "%d", init_count() + 1);
    setenv("STANDIN_NVML_INIT_COUNT", count, 1);
}

int nvmlInitWithFlags(unsigned flags) {
    const char *value;
    int code = load();
    (void)flags;
#ifdef MISMATCH
    return LIB_RM_VERSION_MISMATCH;
#endif
    if (code) return code;
    count_init();
    initialized++;
    code = find(NODE, "init", &value);
    if (code && code != NOT_SUPPORTED) initialized--;
    return code == NOT_SUPPORTED ? SUCCESS : code;
}

int nvmlShutdown(void) {
    if (!initialized) return UNINITIALIZED;
    initialized--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    static char text[64];
    snprintf(text, sizeof text, "stand-in error %d", code);
    return text;
}

int nvmlSystemGetDriverVersion(char *buffer, unsigned size) {
    const char *value;
    int code = find(NODE, "driver_version", &value);
    return code ? code : copy(value, buffer, size);
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    const char *value;
    int code = find(NODE, "cuda_version", &value);
    if (!code) *version = atoi(value);
    return code;
}

int nvmlSystemGetProcessName(unsigned pid, char *buffer, unsigned size) {
    const char *value;
    if (!initialized) return UNINITIALIZED;
    for (int nth = 0; (value = value_of(NODE, "process_name", nth)); nth++) {
        char *rest;
        if (strtoul(value, &rest, 10) == pid && *rest == ' ') return copy(rest + 1, buffer, size);
    }
    return NOT_FOUND;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    const char *value;
    int code;
    if (!initialized) return UNINITIALIZED;
    if ((code = load())) return code;
    code = find(NODE, "count", &value);
    if (code != NOT_SUPPORTED) return code;
    *count = gpu_count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    const char *value;
    int code;
    if (!initialized) return UNINITIALIZED;
    if (index >= (unsigned)gpu_count) return INVALID_ARGUMENT;
    code = find((int)index, "handle", &value);
    if (code && code != NOT_SUPPORTED) return code;
    if (!find((int)index, "lost_until_init", &value) && init_count() < atoi(value)) return GPU_IS_LOST;
    *device = &devices[index];
    return SUCCESS;
}

int nvmlDeviceGetUUID(Device *device, char *buffer, unsigned size) {
    const char *value;
    int code = find_on(device, "uuid", &value);
    return code ? code : copy(value, buffer, size);
}

int nvmlDeviceGetName(Device *device, char *buffer, unsigned size) {
    const char *value;
    int code = find_on(device, "name", &value);
    return code ? code : copy(value, buffer, size);
}

typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} PciInfo;

int nvmlDeviceGetPciInfo_v3(Device *device, PciInfo *info) {
    const char *value;
    int code = find_on(device, "pci_bus_id", &value);
    return code ? code : copy(value, info->bus_id, sizeof info->bus_id);
}

typedef struct {
    unsigned long long total, free, used;
} MemoryV1;

int nvmlDeviceGetMemoryInfo(Device *device, MemoryV1 *memory) {
    const char *value;
    int code = find_on(device, "memory_v1", &value);
    if (!code) sscanf(value, "%llu %llu %llu", &memory->total, &memory->free, &memory->used);
    return code;
}

#ifndef OLD_DRIVER
typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} MemoryV2;

int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *memory) {
    const char *value;
    int code = find_on(device, "memory_v2", &value);
    if (memory->version != (sizeof *memory | 2U << 24)) return ARGUMENT_VERSION_MISMATCH;
    if (!code)
        sscanf(value, "%llu %llu %llu %llu", &memory->total, &memory->reserved, &memory->free, &memory->used);
    return code;
}

typedef struct {
    unsigned version, sensor;
    int celsius;
} Temperature;

int nvmlDeviceGetTemperatureV(Device *device, Temperature *temperature) {
    const char *value;
    int code = find_on(device, "temperature", &value);
    if (temperature->version != (sizeof *temperature | 1U << 24)) return ARGUMENT_VERSION_MISMATCH;
    if (!code) temperature->celsius = atoi(value);
    return code;
}
#endif

static int find_unsigned(Device *device, const char *key, unsigned *number) {
    const char *value;
    int code = find_on(device, key, &value);
    if (!code) *number = (unsigned)strtoul(value, NULL, 10);
    return code;
}

int nvmlDeviceGetTemperature(Device *device, unsigned sensor, unsigned *celsius) {
    (void)sensor;
    return find_unsigned(device, "temperature", celsius);
}

int nvmlDeviceGetPowerUsage(Device *device, unsigned *milliwatts) {
    return find_unsigned(device, "power_milliwatts", milliwatts);
}

int nvmlDeviceGetEnforcedPowerLimit(Device *device, unsigned *milliwatts) {
    return find_unsigned(device, "power_limit_milliwatts", milliwatts);
}

static int find_pair(Device *device, const char *key, unsigned *first, unsigned *second) {
    const char *value;
    int code = find_on(device, key, &value);
    if (!code) sscanf(value, "%u %u", first, second);
    return code;
}

int nvmlDeviceGetUtilizationRates(Device *device, unsigned rates[2]) {
    return find_pair(device, "utilization", &rates[0], &rates[1]);
}

int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
    return find_pair(device, "mig_mode", current, pending);
}

typedef struct {
    unsigned pid;
    unsigned long long used_memory;
    unsigned gpu_instance, compute_instance;
} Process;

/* Fills `processes` from the lines "KEY PID BYTES [GPU_INSTANCE]"; BYTES is "-" where unknown, "KEY none" an empty list. */
static int list_processes(Device *device, const char *key, unsigned *count, Process *processes) {
    const char *value;
    unsigned found = 0, room = *count;
    int code = find_on(device, key, &value);
    if (code) return code;
    while ((value = value_of(index_of(device), key, (int)found)) && strcmp(value, "none")) {
        if (processes && found < room) {
            char bytes[32] = "-";
            Process process = {0, ~0ULL, ~0U, ~0U};
            sscanf(value, "%u %31s %u", &process.pid, bytes, &process.gpu_instance);
            if (bytes[0] != '-') process.used_memory = strtoull(bytes, NULL, 10);
            processes[found] = process;
        }
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

#ifdef OLD_DRIVER
#define NEWEST(name) name##_v2
#else
#define NEWEST(name) name##_v3
#endif

int NEWEST(nvmlDeviceGetComputeRunningProcesses)(Device *device, unsigned *count, Process *processes) {
    return list_processes(device, "compute", count, processes);
}

int NEWEST(nvmlDeviceGetGraphicsRunningProcesses)(Device *device, unsigned *count, Process *processes) {
    return list_processes(device, "graphics", count, processes);
}

int NEWEST(nvmlDeviceGetMPSComputeRunningProcesses)(Device *device, unsigned *count, Process *processes) {
    return list_processes(device, "mps", count, processes);
}
