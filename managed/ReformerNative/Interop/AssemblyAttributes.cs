using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

// Every signature must be blittable: a bool, char or string in one is a compile error instead of a guess about its
// width.
[assembly: DisableRuntimeMarshalling]
[assembly: DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
[assembly: CLSCompliant(false)]
