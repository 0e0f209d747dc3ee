# rfn_target(name): C++17, hidden symbols, warnings as errors, no fast-math, sanitizers when asked for.
function(rfn_target name)
  target_compile_features(${name} PUBLIC cxx_std_17)
  set_target_properties(${name} PROPERTIES
    CXX_EXTENSIONS OFF
    CXX_VISIBILITY_PRESET hidden
    C_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    POSITION_INDEPENDENT_CODE ON)
  target_compile_options(${name} PRIVATE
    $<$<COMPILE_LANGUAGE:C,CXX>:-Wall -Wextra -Werror -Wno-psabi>
    $<$<COMPILE_LANGUAGE:CXX>:-fno-math-errno>
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra --Werror=all-warnings>)
  if(RFN_SANITIZE)
    target_compile_options(${name} PRIVATE -fsanitize=${RFN_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer
      -Wno-maybe-uninitialized)  # GCC sees uses that are not there in instrumented code of the standard library
    target_link_options(${name} PRIVATE -fsanitize=${RFN_SANITIZE})
  endif()
endfunction()
