# find_package(intformer) for programs that open compiled libraries: link intformer::intformer.
# intformer_DIR is what `intformer config --cmake` prints.
if(NOT TARGET intformer::intformer)
  add_library(intformer::intformer INTERFACE IMPORTED)
  set_target_properties(intformer::intformer PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}"
    INTERFACE_SOURCES "${CMAKE_CURRENT_LIST_DIR}/intformer_open.c"
    INTERFACE_LINK_LIBRARIES "${CMAKE_DL_LIBS};-lpthread")
endif()
