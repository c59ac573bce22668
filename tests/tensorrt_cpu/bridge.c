/* Stands in for TensorRT's libraries under its own Python bindings, on a machine without a GPU.
 *
 * The bindings ask libnvinfer, libnvonnxparser and libnvinfer_plugin for a handful of C entry
 * points, and drive everything else through the objects that these return. TensorRT-RTX has the
 * same entry points and the same objects, and its builder works without a GPU; but it wants to be
 * asked with its own version number. So: look the function up there, pass that number on.
 *
 * Its libraries are found from where this file lies (BRIDGE_TO_RTX, relative), so the folder can be
 * moved. Compiled once per soname.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *(*two_arguments)(void *, int32_t);
typedef void *(*three_arguments)(void *, void *, int32_t);
typedef int32_t (*no_argument)(void);

static void *builder_library, *parser_library;

static void *open_beside(const char *relative) {
    Dl_info own;
    char path[4096];
    if (!dladdr((void *)&open_beside, &own)) return NULL;
    const char *slash = strrchr(own.dli_fname, '/');
    int length = slash ? (int)(slash - own.dli_fname) : 0;
    snprintf(path, sizeof path, "%.*s/%s/%s", length, own.dli_fname, BRIDGE_TO_RTX, relative);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) fprintf(stderr, "tensorrt_cpu: %s\n", dlerror());
    return library;
}

__attribute__((constructor)) static void open_both(void) {
    builder_library = open_beside(RTX_BUILDER);
    parser_library = open_beside(RTX_PARSER);
}

static void *look_up(void *library, const char *name) {
    void *found = library ? dlsym(library, name) : NULL;
    if (found) return found;
    fprintf(stderr, "tensorrt_cpu: TensorRT-RTX has no %s\n", name);
    abort();
}

static int32_t own_version(void) {
    return ((no_argument)look_up(builder_library, "getInferLibVersion"))();
}

void *createInferBuilder_INTERNAL(void *logger, int32_t asked) {
    (void)asked;
    return ((two_arguments)look_up(builder_library, __func__))(logger, own_version());
}

void *createInferRuntime_INTERNAL(void *logger, int32_t asked) {
    (void)asked;
    return ((two_arguments)look_up(builder_library, __func__))(logger, own_version());
}

void *createInferRefitter_INTERNAL(void *engine, void *logger, int32_t asked) {
    (void)asked;
    return ((three_arguments)look_up(builder_library, __func__))(engine, logger, own_version());
}

void *getBuilderPluginRegistry(int32_t capability) {
    return ((void *(*)(int32_t))look_up(builder_library, __func__))(capability);
}

void *getPluginRegistry(void) {
    return ((void *(*)(void))look_up(builder_library, __func__))();
}

/* There are no plugins to register; the bindings only want to hear that it went well. */
uint8_t initLibNvInferPlugins(void *logger, const char *name_space) {
    (void)logger;
    (void)name_space;
    return 1;
}

int32_t getNvOnnxParserVersion(void) {
    return ((no_argument)look_up(parser_library, __func__))();
}

void *createNvOnnxParser_INTERNAL(void *network, void *logger, int32_t asked) {
    return ((three_arguments)look_up(parser_library, __func__))(network, logger, asked);
}

void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int32_t asked) {
    return ((three_arguments)look_up(parser_library, __func__))(refitter, logger, asked);
}
