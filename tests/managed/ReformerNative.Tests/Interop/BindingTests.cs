using System.Reflection;
using System.Reflection.Emit;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Text;
using ReformerNative.BindingGenerator;
using ReformerNative.Interop;

namespace ReformerNative.Tests.Interop;

/// <summary>Header, generated C#, compiled C# and the built library say the same.</summary>
public sealed class BindingTests
{
    private static readonly string[] Generated = ["NativeConstants.g.cs", "NativeMethods.g.cs", "NativeStructs.g.cs"];

    private static string HeaderPath => Repository.PathOf("native", "include", "reformer_native.h");

    private static IEnumerable<MethodInfo> Imports => typeof(NativeMethods)
        .GetMethods(BindingFlags.Static | BindingFlags.NonPublic | BindingFlags.Public | BindingFlags.DeclaredOnly)
        .Where(m => m.Name.StartsWith("rfn_", StringComparison.Ordinal));

    [Test]
    public void Generator_CheckedInFiles_AreWhatTheHeaderSays()
    {
        (int exitCode, _, string errors) = RunGenerator("--check", Repository.Root);
        Assert.That(exitCode, Is.Zero, errors);
    }

    [Test]
    public void Generator_RunTwice_WritesTheSame()
    {
        var first = new CSharpWriter(ClangFrontEnd.Parse(HeaderPath)).Write();
        var second = new CSharpWriter(ClangFrontEnd.Parse(HeaderPath)).Write();
        Assert.That(first, Is.EqualTo(second));
        Assert.That(first.Keys, Is.EqualTo(Generated));
    }

    [Test]
    public void Generator_ChangedHeader_ExitsWithOneAndNamesTheDifference()
    {
        string root = Directory.CreateTempSubdirectory("rfn-bindings-").FullName;
        try
        {
            string include = Directory.CreateDirectory(Path.Combine(root, "native", "include")).FullName;
            string interop = Directory
                .CreateDirectory(Path.Combine(root, "managed", "ReformerNative", "Interop"))
                .FullName;
            string header = File.ReadAllText(HeaderPath);
            string changed = header.Replace("int32_t top_k;", "int64_t top_k;", StringComparison.Ordinal);
            File.WriteAllText(Path.Combine(include, "reformer_native.h"), changed);
            foreach (string name in Generated)
            {
                File.Copy(Repository.PathOf("managed", "ReformerNative", "Interop", name), Path.Combine(interop, name));
            }

            (int exitCode, _, string errors) = RunGenerator("--check", root);
            Assert.That(exitCode, Is.EqualTo(1));
            Assert.That(
                errors,
                Does.Contain("NativeStructs.g.cs: ")
                    .And.Contain("+     internal long top_k;")
                    .And.Contain("1 of 3 files differ")
            );

            (exitCode, _, errors) = RunGenerator(root);
            Assert.That(exitCode, Is.Zero, errors);
            Assert.That(RunGenerator("--check", root).ExitCode, Is.Zero);
        }
        finally
        {
            Directory.Delete(root, recursive: true);
        }
    }

    [Test]
    public void Generator_WrongUsage_ExitsWithTwo()
    {
        Assert.That(RunGenerator("--wrong").ExitCode, Is.EqualTo(2));
        Assert.That(
            RunGenerator("--check", Path.Combine(Path.GetTempPath(), "no-such-folder")).ExitCode, Is.EqualTo(2));
    }

    [Test]
    public unsafe void Structs_ByReflection_EqualTheLibrarysDescription()
    {
        NativeLoader.EnsureLoaded();
        IEnumerable<Type> structures = ClangFrontEnd.Parse(HeaderPath).Structures.Select(s => StructType(s.Name));
        string expected = NativeError.Text(NativeMethods.rfn_abi_describe()).TrimEnd('\n');
        Assert.That(string.Join('\n', structures.Select(Describe)), Is.EqualTo(expected));
    }

    [Test]
    public void Imports_AgainstTheHeader_AreTheSameFunctions()
    {
        IEnumerable<string> declared = ClangFrontEnd.Parse(HeaderPath).Functions.Select(f => f.Name);
        Assert.That(Imports.Select(m => m.Name), Is.EquivalentTo(declared));
    }

    [Test]
    public void Imports_AgainstTheLibrary_AreItsExports()
    {
        (int exitCode, string output, string errors) = Repository.Run(
            "nm", "-D", "--defined-only", "-j", Path.Combine(AppContext.BaseDirectory, "libreformer_native.so"));
        Assert.That(exitCode, Is.Zero, errors);
        IEnumerable<string> exported = output
            .Split('\n', StringSplitOptions.RemoveEmptyEntries)
            .Select(s => s.Split('@')[0]);
        Assert.That(exported, Is.EquivalentTo(Imports.Select(m => m.Name)), "exports and imports");
    }

    [Test]
    public void Imports_Parameters_AreBlittable()
    {
        foreach (MethodInfo method in Imports)
        {
            foreach (ParameterInfo parameter in method.GetParameters().Append(method.ReturnParameter))
            {
                Assert.That(
                    IsBlittable(parameter.ParameterType), $"{method.Name}: {parameter.ParameterType} {parameter.Name}");
            }
        }
    }

    [Test]
    public void Structs_Fields_AreBlittable()
    {
        foreach (Structure structure in ClangFrontEnd.Parse(HeaderPath).Structures)
        {
            foreach (FieldInfo field in Fields(StructType(structure.Name)))
            {
                Assert.That(IsBlittable(field.FieldType), $"{structure.Name}.{field.Name}: {field.FieldType}");
            }
        }
    }

    private static (int ExitCode, string Output, string Errors) RunGenerator(params string[] arguments) =>
        Repository.Run("dotnet", [typeof(CSharpWriter).Assembly.Location, .. arguments]);

    private static Type StructType(string name) =>
        typeof(NativeMethods).Assembly.GetType($"ReformerNative.Interop.{name}", throwOnError: true)!;

    private static FieldInfo[] Fields(Type type) =>
        [
            .. type.GetFields(BindingFlags.Instance | BindingFlags.NonPublic | BindingFlags.Public)
                .OrderBy(f => f.MetadataToken),
        ];

    private static bool IsBlittable(Type type)
    {
        if (type.IsByRef || type.IsPointer)
        {
            return IsBlittable(type.GetElementType()!);
        }

        return type == typeof(void)
            || type == typeof(byte)
            || type == typeof(int)
            || type == typeof(uint)
            || type == typeof(long)
            || type == typeof(ulong)
            || type == typeof(float)
            || type == typeof(double)
            || type == typeof(nint)
            || typeof(SafeHandle).IsAssignableFrom(type)
            || (type.Namespace == "ReformerNative.Interop" && type.IsValueType && !type.IsAutoLayout
                && Fields(type).All(f => IsBlittable(f.FieldType)));
    }

    private static string Describe(Type type)
    {
        var text = new StringBuilder();
        text.Append(type.Name).Append(':').Append(SizeOf(type)).Append(':');
        return text.AppendJoin(',', Fields(type).Select(f => $"{f.Name}@{OffsetOf(type, f)}")).ToString();
    }

    private static int SizeOf(Type type) =>
        (int)typeof(Unsafe).GetMethod(nameof(Unsafe.SizeOf))!.MakeGenericMethod(type).Invoke(null, null)!;

    // The distance from a struct's address to its field's, by IL, because Marshal.OffsetOf knows no inline arrays.
    private static long OffsetOf(Type type, FieldInfo field)
    {
        var method = new DynamicMethod("OffsetOf", typeof(long), [], type.Module, skipVisibility: true);
        ILGenerator code = method.GetILGenerator();
        LocalBuilder local = code.DeclareLocal(type);
        code.Emit(OpCodes.Ldloca, local);
        code.Emit(OpCodes.Ldflda, field);
        code.Emit(OpCodes.Ldloca, local);
        code.Emit(OpCodes.Sub);
        code.Emit(OpCodes.Conv_I8);
        code.Emit(OpCodes.Ret);
        return ((Func<long>)method.CreateDelegate(typeof(Func<long>)))();
    }
}
