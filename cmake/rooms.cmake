# A room is one folder under src/ with one public header of the same name. Each room is a static
# library whose include path holds only itself; a room sees the headers of the rooms it links and of
# those they expose, so an include that points the wrong way does not build.

add_library(mlx_serve_options INTERFACE)
target_compile_definitions(mlx_serve_options INTERFACE _POSIX_C_SOURCE=200809L _DEFAULT_SOURCE
    _FILE_OFFSET_BITS=64 MLX_SERVE_VERSION="${PROJECT_VERSION}"
    $<$<PLATFORM_ID:Darwin>:_DARWIN_C_SOURCE>) # or macOS hides what is not in POSIX
target_compile_options(mlx_serve_options INTERFACE
    -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wdouble-promotion
    -Wstrict-prototypes -Wmissing-prototypes -Wformat=2 -Wvla -Wundef -ffp-contract=off
    $<$<BOOL:${MLX_SERVE_WERROR}>:-Werror>)
if(MLX_SERVE_SANITIZE)
    target_compile_options(mlx_serve_options INTERFACE
        -fsanitize=${MLX_SERVE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
    target_link_options(mlx_serve_options INTERFACE -fsanitize=${MLX_SERVE_SANITIZE})
endif()
if(MLX_SERVE_FUZZ)
    target_compile_options(mlx_serve_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

# mlx_serve_room(NAME SOURCES a.c b.c [USES room...] [PRIVATE library...])
# USES are rooms whose headers this room's own header may include.
function(mlx_serve_room name)
    cmake_parse_arguments(ROOM "" "" "SOURCES;USES;PRIVATE" ${ARGN})
    add_library(${name} STATIC ${ROOM_SOURCES})
    target_include_directories(${name} PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
    target_link_libraries(${name} PUBLIC ${ROOM_USES} PRIVATE mlx_serve_options ${ROOM_PRIVATE})
endfunction()

# mlx_serve_test(NAME USES room... [SOURCES extra.c]): tests/<folder>/NAME.c as one cmocka program. What
# concerns threads gets the label "threads" and also runs under ThreadSanitizer.
function(mlx_serve_test name)
    cmake_parse_arguments(TEST "" "" "SOURCES;USES" ${ARGN})
    add_executable(${name} ${name}.c ${TEST_SOURCES})
    target_link_libraries(${name} PRIVATE ${TEST_USES} mlx_serve_options PkgConfig::CMOCKA
        Threads::Threads m)
    target_compile_definitions(${name} PRIVATE TEST_DATA_DIR="${PROJECT_SOURCE_DIR}/tests/data"
        TEST_EMULATED=$<IF:$<BOOL:${CMAKE_CROSSCOMPILING}>,1,0>)
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES TIMEOUT 300)
endfunction()
