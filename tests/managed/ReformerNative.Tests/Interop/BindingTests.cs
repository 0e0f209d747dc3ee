using System.Reflection;
using System.Reflection.Emit;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Text;
using ReformerNative.BindingGenerator;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Tests.Interop;

/// <summary>Header, generated C#, compiled C# and the built library say the same.</summary>
public sealed class BindingTests
{
    private static readonly IReadOnlyDictionary<string, string> Generated =
        Bindings.Write(ClangFrontEnd.Parse(HeaderPath));

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
        Assert.That(Bindings.Write(ClangFrontEnd.Parse(HeaderPath)), Is.EqualTo(Generated));
        Assert.That(
            Generated.Keys,
            Is.SupersetOf(
                new[]
                {
                    "managed/ReformerNative/Interop/NativeConstants.g.cs",
                    "managed/ReformerNative/Interop/NativeMethods.g.cs",
                    "managed/ReformerNative/Interop/NativeStructs.g.cs",
                    "managed/ReformerNative/Ops/LayerNorm.g.cs",
                    "native/core/describe_table.inc",
                }));
    }

    [Test]
    public void Generator_Lines_AreAtMost120Columns() =>
        Assert.That(
            Generated.SelectMany(file => file.Value.Split('\n').Select(line => $"{file.Key}: {line}"))
                .Where(line => line.Length - line.IndexOf(' ', StringComparison.Ordinal) - 1 > 120),
            Is.Empty);

    [Test]
    public void Generator_ChangedHeader_ExitsWithOneAndNamesTheDifference()
    {
        string root = Directory.CreateTempSubdirectory("rfn-bindings-").FullName;
        try
        {
            string include = Directory.CreateDirectory(Path.Combine(root, "native", "include")).FullName;
            string header = File.ReadAllText(HeaderPath);
            string changed = header.Replace("int32_t top_k;", "int64_t top_k;", StringComparison.Ordinal);
            File.WriteAllText(Path.Combine(include, "reformer_native.h"), changed);
            foreach ((string name, string text) in Generated)
            {
                Directory.CreateDirectory(Path.GetDirectoryName(Path.Combine(root, name))!);
                File.WriteAllText(Path.Combine(root, name), text);
            }

            string orphan = Path.Combine(root, "managed", "ReformerNative", "Ops", "Gone.g.cs");
            File.WriteAllText(orphan, "// of an op that the header has no more");
            (int exitCode, _, string errors) = RunGenerator("--check", root);
            Assert.That(exitCode, Is.EqualTo(1));
            Assert.That(
                errors,
                Does.Contain("NativeStructs.g.cs: ")
                    .And.Contain("+     internal long top_k;")
                    .And.Contain("Sample.g.cs: ")
                    .And.Contain("+     public long TopK { get; init; }")
                    .And.Contain("Ops/Gone.g.cs: nothing in the header stands behind it")
                    .And.Contain($"3 of {Generated.Count} files differ")
            );

            (exitCode, _, errors) = RunGenerator(root);
            Assert.That(exitCode, Is.Zero, errors);
            Assert.That(RunGenerator("--check", root).ExitCode, Is.Zero);
            Assert.That(orphan, Does.Not.Exist);
        }
        finally
        {
            Directory.Delete(root, recursive: true);
        }
    }

    /// <summary>The C# of an op, and its place in the describe table, come from the header alone.</summary>
    [Test]
    public void Generator_NewOpOfFourTensors_NeedsNoCodeByHand()
    {
        IReadOnlyDictionary<string, string> files = Bindings.Write(ParseWith(
            """
            /* y = x * gate, `rows` at a time, as rfn_linear does. */
            typedef struct rfn_product {
              uint32_t struct_size;
              int32_t activation;   /* RFN_ACTIVATION_* */
              int32_t causal;       /* 1: later rows count */
              float epsilon;        /* required: > 0 */
              int64_t rows;         /* 0 = automatic */
              rfn_tensor x;         /* F32 [N,E] */
              rfn_tensor gate;      /* F32 [E] */
              rfn_tensor y;         /* out, forward: F32 [N,E] */
              rfn_tensor grad_gate; /* backward: F32 [E], added to */
            } rfn_product;
            RFN_API rfn_status rfn_product_workspace(const rfn_context* context, const rfn_product* op, int32_t pass,
                                                     int64_t* bytes);
            RFN_API rfn_status rfn_product_forward(rfn_stream* stream, const rfn_product* op, void* workspace,
                                                   int64_t workspace_bytes);
            RFN_API rfn_status rfn_product_backward(rfn_stream* stream, const rfn_product* op, void* workspace,
                                                    int64_t workspace_bytes);
            """));
        Assert.That(
            files.Where(file => Generated.GetValueOrDefault(file.Key) != file.Value).Select(file => file.Key),
            Is.EqualTo(
                new[]
                {
                    "managed/ReformerNative/Interop/NativeMethods.g.cs",
                    "managed/ReformerNative/Interop/NativeStructs.g.cs",
                    "managed/ReformerNative/Ops/Product.g.cs",
                    "native/core/describe_table.inc",
                }));
        string product = files["managed/ReformerNative/Ops/Product.g.cs"];
        foreach (string line in (string[])
            [
                "/// y = x * gate, <c>rows</c> at a time, as <see cref=\"Linear\"/> does.",
                "public Activation Activation { get; init; }",
                "/// <summary>Whether later rows count.</summary>",
                "public bool Causal { get; init; }",
                "public required float Epsilon { get; init; }",
                "public long Rows { get; init; }",
                "/// <summary>Float32 [N,E].</summary>",
                "public required TensorView Gate { get; init; }",
                "public TensorView Y { get; init; }",
                "public TensorView GradGate { get; init; }",
                "public unsafe long WorkspaceBytes(ReformerContext context, Pass pass)",
                "public unsafe void Forward(Workspace workspace)",
                "public unsafe void Backward(Workspace workspace)",
                "activation = (int)Activation,",
                "causal = Causal ? 1 : 0,",
                "grad_gate = GradGate.ToNative(context),",
            ])
        {
            Assert.That(product, Does.Contain(line.TrimStart('/', ' ')));
        }
    }

    [Test]
    public void Generator_FieldWithoutAComment_IsRefused() =>
        Assert.That(
            () => Bindings.Write(ParseWith(
                """
                /* y = x * gate */
                typedef struct rfn_product {
                  uint32_t struct_size;
                  float rate;
                } rfn_product;
                RFN_API rfn_status rfn_product_forward(rfn_stream* stream, const rfn_product* op);
                """)),
            Throws.TypeOf<NotSupportedException>().With.Message.Contains("rfn_product.rate has no comment"));

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

    /// <summary>The header with more declarations at its end.</summary>
    private static Header ParseWith(string declarations)
    {
        using var directory = new TemporaryDirectory();
        string path = Path.Combine(directory.Path, "reformer_native.h");
        string header = File.ReadAllText(HeaderPath);
        int end = header.LastIndexOf("#ifdef __cplusplus", StringComparison.Ordinal);
        File.WriteAllText(path, header.Insert(end, declarations + "\n\n"));
        return ClangFrontEnd.Parse(path);
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
