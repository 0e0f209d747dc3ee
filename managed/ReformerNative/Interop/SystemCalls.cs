using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace ReformerNative.Interop;

/// <summary>What lies at a path, links followed.</summary>
internal enum FileKind
{
    /// <summary>Nothing, or a link to nothing.</summary>
    Nothing,

    /// <summary>A regular file, or something that cannot be looked at: opening it will say why.</summary>
    Regular,

    /// <summary>A directory.</summary>
    Directory,

    /// <summary>A device.</summary>
    Device,

    /// <summary>A pipe or a socket.</summary>
    Pipe,
}

/// <summary>
/// System calls that .NET has in no exact form: its flush hides that the disk failed, it cannot force a directory to
/// the disk, it locks what it opens, and it does not tell a pipe or a device from a file. They are looked up in the
/// whole program, as a C program's calls would be.
/// </summary>
internal static unsafe class SystemCalls
{
    private const int OpenReadOnly = 0;
    private const int CloseOnExec = 0x80000; // Linux
    private const int Interrupted = 4; // EINTR
    private const int Invalid = 22; // EINVAL: nothing that could be forced to a disk
    private const int ReadOnlyFileSystem = 30; // EROFS

    // struct statx has the same form on every architecture.
    private const int StatusBytes = 256;
    private const int StatusModeOffset = 28;
    private const uint StatusType = 1;
    private const int CurrentDirectory = -100;

    /// <summary>Forces what was written to an open file to the disk.</summary>
    /// <param name="file">The file.</param>
    /// <param name="path">Its name, for the sentence.</param>
    /// <exception cref="IOException">The disk did not take it.</exception>
    public static void Sync(SafeFileHandle file, string path)
    {
        if (OperatingSystem.IsWindows())
        {
            RandomAccess.FlushToDisk(file);
            return;
        }

        bool held = false;
        try
        {
            file.DangerousAddRef(ref held);
            var sync = (delegate* unmanaged<int, int>)Find("fsync");
            int error;
            do
            {
                error = sync((int)file.DangerousGetHandle()) == 0 ? 0 : Marshal.GetLastSystemError();
            }
            while (error == Interrupted);
            if (error is not (0 or Invalid or ReadOnlyFileSystem))
            {
                throw Failure(path, "could not be forced to the disk", error);
            }
        }
        finally
        {
            if (held)
            {
                file.DangerousRelease();
            }
        }
    }

    /// <summary>Forces the names in a directory to the disk: a renamed file is safe only after that.</summary>
    /// <exception cref="IOException">The disk did not take them.</exception>
    public static void SyncDirectory(string path)
    {
        if (!OperatingSystem.IsWindows())
        {
            using SafeFileHandle directory = OpenUnlocked(path);
            Sync(directory, path);
        }
    }

    /// <summary>Opens a file or a directory for reading, whoever has locked it.</summary>
    /// <exception cref="IOException">It cannot be opened.</exception>
    public static SafeFileHandle OpenUnlocked(string path)
    {
        var open = (delegate* unmanaged<byte*, int, int>)Find("open");
        byte* name = (byte*)Marshal.StringToCoTaskMemUTF8(path);
        try
        {
            int file = open(name, OpenReadOnly | (OperatingSystem.IsLinux() ? CloseOnExec : 0));
            return file >= 0
                ? new SafeFileHandle(file, ownsHandle: true)
                : throw Failure(path, "could not be opened", Marshal.GetLastSystemError());
        }
        finally
        {
            Marshal.FreeCoTaskMem((nint)name);
        }
    }

    /// <summary>What lies at a path, found without opening it: opening a pipe waits for a writer.</summary>
    public static FileKind KindOf(string path)
    {
        int type = OperatingSystem.IsLinux() ? TypeOf(path) : 0;
        return type switch
        {
            1 or 12 => FileKind.Pipe,
            2 or 6 => FileKind.Device,
            _ when Directory.Exists(path) => FileKind.Directory,
            0 => File.Exists(path) ? FileKind.Regular : FileKind.Nothing,
            _ => FileKind.Regular,
        };
    }

    /// <summary>The type in the upper bits of a file's mode; 0 when it cannot be found out.</summary>
    private static int TypeOf(string path)
    {
        var status = (delegate* unmanaged<int, byte*, int, uint, byte*, int>)Find("statx");
        byte* name = (byte*)Marshal.StringToCoTaskMemUTF8(path);
        byte* result = stackalloc byte[StatusBytes];
        try
        {
            return status(CurrentDirectory, name, 0, StatusType, result) == 0
                ? *(ushort*)(result + StatusModeOffset) >> 12
                : 0;
        }
        finally
        {
            Marshal.FreeCoTaskMem((nint)name);
        }
    }

    private static nint Find(string name) =>
        NativeLibrary.GetExport(NativeLibrary.GetMainProgramHandle(), name);

    private static IOException Failure(string path, string what, int error) =>
        new($"{path}: {what}: {Marshal.GetPInvokeErrorMessage(error)}", error);
}
