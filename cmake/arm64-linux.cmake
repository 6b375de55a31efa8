# Cross-building for 64-bit Arm on Linux, with tests run by user-mode qemu (QEMU_CPU chooses the
# processor). cmocka for Arm lies where tools/fetch-arm64-cmocka has put it.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(ENV{PKG_CONFIG_SYSROOT_DIR} ${CMAKE_CURRENT_LIST_DIR}/../build/arm64-packages)
set(ENV{PKG_CONFIG_LIBDIR} $ENV{PKG_CONFIG_SYSROOT_DIR}/usr/lib/aarch64-linux-gnu/pkgconfig)
find_program(MLX_SERVE_QEMU NAMES qemu-aarch64 qemu-aarch64-static)
if(MLX_SERVE_QEMU)
    set(CMAKE_CROSSCOMPILING_EMULATOR ${MLX_SERVE_QEMU} -L /usr/aarch64-linux-gnu)
endif()
