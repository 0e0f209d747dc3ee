using System.Reflection;
using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Tests.Ops;

/// <summary>Every property of an op reaches the C field of its name, and every C field has its property.</summary>
public sealed class OpMappingTests
{
    private const BindingFlags Any = BindingFlags.Instance | BindingFlags.Public | BindingFlags.NonPublic;
    private static readonly string[] FilledByTheOp = ["struct_size", "reserved", "axes", "factor_count"];

    private int counter;

    [TestCaseSource(nameof(OpTypes))]
    public void Op_EveryProperty_ReachesItsField(Type type)
    {
        using var context = new ReformerContext(threads: 1);
        counter = 0;
        var results = new List<Tensor>();
        object op = Fill(type, context, results);
        AssertSame(op, Native(op, context), context, type.Name);
        results.ForEach(result => result.Dispose());
    }

    private static Type[] OpTypes() =>
        [
            .. typeof(LayerNorm)
                .Assembly.GetTypes()
                .Where(t =>
                    t.Namespace == typeof(LayerNorm).Namespace
                    && t.IsValueType
                    && !t.IsByRefLike
                    && HasContextParameter(t)
                ),
        ];

    private static bool HasContextParameter(Type type) =>
        type.GetMethod("ToNative", Any) is MethodInfo method
        && method.GetParameters().Length == 1
        && method.ReturnType.Name.StartsWith("rfn_", StringComparison.Ordinal)
        && method.ReturnType != typeof(rfn_tensor_array4);

    private static PropertyInfo[] Settable(Type type) =>
        [
            .. type.GetProperties(BindingFlags.Instance | BindingFlags.Public)
                .Where(p => p.CanWrite && p.GetIndexParameters().Length == 0),
        ];

    private static object Native(object managed, ReformerContext context)
    {
        MethodInfo method = managed.GetType().GetMethod("ToNative", Any)!;
        return method.Invoke(managed, method.GetParameters().Length == 0 ? [] : [context])!;
    }

    /// <summary>The C struct of results that a property points to, if it does.</summary>
    private static Type? Result(Type type, PropertyInfo property) =>
        type.GetMethod("ToNative", Any)!.ReturnType.GetFields(Any)
            .Where(f => f.FieldType.IsPointer && f.Name.Replace("_", "", StringComparison.Ordinal)
                .Equals(property.Name, StringComparison.OrdinalIgnoreCase))
            .Select(f => f.FieldType.GetElementType()).FirstOrDefault();

    private static TensorView AllocateResult(Type result, ReformerContext context, List<Tensor> results)
    {
        FieldInfo[] fields = result.GetFields(Any);
        DType element = fields[0].FieldType == typeof(long) ? DType.Int64
            : fields[0].FieldType == typeof(double) ? DType.Float64
            : DType.Float32;
        results.Add(context.Zeros(new TensorShape(fields.Length), element));
        return results[^1];
    }

    /// <summary>An instance whose every property has a value of its own.</summary>
    private object Fill(Type type, ReformerContext context, List<Tensor> results)
    {
        object instance = RuntimeHelpers.GetUninitializedObject(type);
        foreach (PropertyInfo property in Settable(type))
        {
            property.SetValue(instance, Result(type, property) is Type result
                ? AllocateResult(result, context, results)
                : Value(property.PropertyType, context, results));
        }

        return instance;
    }

    private object Value(Type type, ReformerContext context, List<Tensor> results)
    {
        counter++;
        if (type.IsEnum)
        {
            Array values = Enum.GetValues(type);
            return values.GetValue(values.Length - 1)!;
        }

        return type == typeof(TensorView) ? TensorView.Meta(new TensorShape(counter, 1))
            : type == typeof(PositionTables)
                ? new PositionTables(
                    TensorView.Meta(new TensorShape(counter, 1)), TensorView.Meta(new TensorShape(++counter, 1)))
            : type == typeof(BucketFactors) ? new BucketFactors(2 * counter, 4)
            : type == typeof(bool) ? true
            : type == typeof(int) ? counter
            : type == typeof(long) ? (long)counter
            : type == typeof(ulong) ? (ulong)counter
            : type == typeof(float) ? (float)counter
            : type == typeof(double) ? (double)counter
            : Fill(type, context, results);
    }

    private static void AssertSame(object managed, object native, ReformerContext context, string path)
    {
        var fields = native.GetType().GetFields(Any)
            .ToDictionary(f => f.Name.Replace("_", "", StringComparison.Ordinal), StringComparer.OrdinalIgnoreCase);
        Assert.That(fields["structsize"].GetValue(native), Is.EqualTo((uint)SizeOf(native.GetType())), path);
        PropertyInfo[] properties = Settable(managed.GetType());
        Assert.That(
            fields
                .Values.Select(f => f.Name)
                .Except(FilledByTheOp)
                .Select(n => n.Replace("_", "", StringComparison.Ordinal)),
            Is.EquivalentTo(properties.Select(p => p.Name)).IgnoreCase,
            path
        );
        foreach (PropertyInfo property in properties)
        {
            string name = $"{path}.{property.Name}";
            object expected = property.GetValue(managed)!;
            object actual = fields[property.Name].GetValue(native)!;
            switch (expected)
            {
                case TensorView view when actual is Pointer pointer:
                    unsafe
                    {
                        Assert.That((nint)Pointer.Unbox(pointer), Is.EqualTo(view.Pointer), name);
                    }

                    break;
                case TensorView view:
                    AssertTensor(view, (rfn_tensor)actual, name);
                    break;
                case PositionTables tables:
                    Assert.That(fields["axes"].GetValue(native), Is.EqualTo(tables.Count), name);
                    for (int i = 0; i < tables.Count; i++)
                    {
                        AssertTensor(tables[i], ((rfn_tensor_array4)actual)[i], $"{name}[{i}]");
                    }

                    break;
                case BucketFactors factors:
                    Assert.That(fields["factorcount"].GetValue(native), Is.EqualTo(factors.Count), name);
                    var digits = (int_array8)actual;
                    Assert.That(
                        ((ReadOnlySpan<int>)digits)[..factors.Count].ToArray(), Is.EqualTo(factors.ToArray()), name);
                    break;
                case AttentionOptions or BlockParameters:
                    AssertSame(expected, actual, context, name);
                    break;
                default:
                    long wanted = expected is bool flag ? (flag ? 1 : 0) : Convert.ToInt64(expected);
                    Assert.That(Convert.ToInt64(actual), Is.EqualTo(wanted), name);
                    break;
            }
        }
    }

    private static void AssertTensor(TensorView expected, rfn_tensor actual, string name)
    {
        Assert.That(actual.struct_size, Is.EqualTo((uint)Unsafe.SizeOf<rfn_tensor>()), name);
        Assert.That(actual.dtype, Is.EqualTo(NativeConstants.RFN_F32), name);
        Assert.That(
            (actual.rank, actual.shape[0], actual.shape[1], actual.shape[2]),
            Is.EqualTo((2, expected.Shape[0], 1L, 0L)), name);
        Assert.That((actual.data, actual.bytes), Is.EqualTo(((nint)0, 4 * expected.Shape[0])), name);
    }

    private static int SizeOf(Type type) =>
        (int)typeof(Unsafe).GetMethod(nameof(Unsafe.SizeOf))!.MakeGenericMethod(type).Invoke(null, null)!;
}
