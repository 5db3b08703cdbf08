# Decides whether CUDA kernels are compiled, and for which GPUs.

# gct_find_cuda(result sources): ON if kernels are to be compiled. GCT_CUDA=auto needs nvcc and at least one source,
# no GPU: a build machine seldom has one.
function(gct_find_cuda result sources)
  if(NOT GCT_CUDA MATCHES "^(auto|0|1)$")
    message(FATAL_ERROR "GCT_CUDA must be auto, 0 or 1; got ${GCT_CUDA}")
  endif()
  set(${result} OFF PARENT_SCOPE)
  if(GCT_CUDA STREQUAL "0" OR (GCT_CUDA STREQUAL "auto" AND NOT sources))
    return()
  endif()

  find_program(nvcc NAMES nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
  if(nvcc AND NOT DEFINED ENV{CUDACXX})
    set(ENV{CUDACXX} "${nvcc}")
  endif()
  include(CheckLanguage)
  check_language(CUDA)  # compiles something: an nvcc that rejects this host compiler counts as none
  if(CMAKE_CUDA_COMPILER AND sources)
    set(${result} ON PARENT_SCOPE)
  elseif(GCT_CUDA STREQUAL "1" AND NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "GCT_CUDA=1 needs a working nvcc and found none: put it on PATH, or set CUDACXX or CUDA_HOME, "
                        "or build with GCT_CUDA=0")
  elseif(NOT CMAKE_CUDA_COMPILER)
    message(STATUS "gct: no working nvcc, so no CUDA kernels")
  else()
    message(WARNING "GCT_CUDA=1, but csrc/cuda has no .cu file: nothing to compile")
  endif()
endfunction()

# gct_default_cuda_architectures(result): CMake's form of TORCH_CUDA_ARCH_LIST or, without it, of our default.
# In CMake "90-real" is machine code, "90-virtual" PTX and "90" both.
function(gct_default_cuda_architectures result)
  if(NOT "$ENV{TORCH_CUDA_ARCH_LIST}" STREQUAL "")
    gct_translate_arch_list(architectures "$ENV{TORCH_CUDA_ARCH_LIST}")
  else()
    set(architectures 80-real)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 11.8)
      list(APPEND architectures 90-real)
    endif()
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
      list(APPEND architectures 100-real)
    endif()
    # PTX of the newest one, for the GPUs that come after it.
    list(TRANSFORM architectures REPLACE "-real" "" AT -1)
  endif()
  set(${result} "${architectures}" PARENT_SCOPE)
endfunction()

# "8.0 9.0a;10.0+PTX" -> 80-real;90a-real;100
function(gct_translate_arch_list result arch_list)
  string(REGEX REPLACE "[ ,]+" ";" arch_list "${arch_list}")
  set(architectures "")
  foreach(arch IN LISTS arch_list)
    if(NOT arch MATCHES "^([0-9]+)\\.([0-9][a-z]?)(\\+PTX)?$")
      message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST: expected numbers such as \"8.0;9.0+PTX\", got \"${arch}\"")
    endif()
    if(CMAKE_MATCH_3)
      list(APPEND architectures "${CMAKE_MATCH_1}${CMAKE_MATCH_2}")
    else()
      list(APPEND architectures "${CMAKE_MATCH_1}${CMAKE_MATCH_2}-real")
    endif()
  endforeach()
  set(${result} "${architectures}" PARENT_SCOPE)
endfunction()
