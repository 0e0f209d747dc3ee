using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Tests.Tensors;

public sealed class TensorTests
{
    private ReformerContext context = null!;

    [OneTimeSetUp]
    public void Open() => context = new ReformerContext(threads: 1);

    [OneTimeTearDown]
    public void CloseContext() => context.Dispose();

    [Test]
    public void Copy_ThereAndBack_GivesTheSame()
    {
        using Tensor tensor = context.FromValues<double>([1, 2, 3, 4, 5, 6], new TensorShape(2, 3));
        Assert.That(tensor.ToArray<double>(), Is.EqualTo(new double[] { 1, 2, 3, 4, 5, 6 }));
        Assert.That(tensor.ToString(), Is.EqualTo("Float64 [2, 3]"));
        tensor.Rows(1, 1).Zero();
        Assert.That(tensor.AsSpan<double>().ToArray(), Is.EqualTo(new double[] { 1, 2, 3, 0, 0, 0 }));
    }

    [Test]
    public void HalfTensors_ThereAndBack_GiveTheSame()
    {
        BFloat16[] values = [(BFloat16)0.5f, (BFloat16)(-3e38f), BFloat16.FromBits(0x0001)];
        using Tensor brain = context.FromValues<BFloat16>(values, new TensorShape(3));
        using Tensor half = context.FromValues<Half>([(Half)0.5f, Half.MaxValue, Half.Epsilon], new TensorShape(3));
        Assert.That(brain.ToArray<BFloat16>(), Is.EqualTo(values));
        Assert.That(half.ToArray<Half>(), Is.EqualTo(new[] { (Half)0.5f, Half.MaxValue, Half.Epsilon }));
        Assert.That(brain.ToString(), Is.EqualTo("BFloat16 [3]"));
        Assert.That(half.ToString(), Is.EqualTo("Float16 [3]"));
        Assert.That(brain.View.ByteCount, Is.EqualTo(6));
        Assert.That(half.Rows(1, 1).Pointer - half.View.Pointer, Is.EqualTo((nint)2));
        Assert.That(() => half.ToArray<BFloat16>(), Throws.TypeOf<ArgumentException>());
    }

    [TestCase(1f, 0x3F80)]
    [TestCase(-0f, 0x8000)]
    [TestCase(1.00390625f, 0x3F80)] // halfway above an even number
    [TestCase(1.01171875f, 0x3F82)] // halfway below an even number
    [TestCase(1.0039065f, 0x3F81)]
    [TestCase(3.4e38f, 0x7F80)] // past the largest number
    [TestCase(float.NegativeInfinity, 0xFF80)]
    [TestCase(float.NaN, 0x7FFF)]
    public void BFloat16_FromSingle_IsTheNearestEven(float value, int bits)
    {
        var rounded = (BFloat16)value;
        Assert.That(rounded.Bits, Is.EqualTo((ushort)bits));
        Assert.That(BFloat16.FromBits((ushort)bits) == rounded, Is.True);
        Assert.That(BFloat16.FromSingle(rounded), Is.EqualTo(rounded), "exact there and back");
    }

    [Test]
    public void Attention_OfHalfTensors_IsThatOfFloat32Rounded()
    {
        var shape = new TensorShape(1, 20, 2, 4);
        float[] q = [.. Enumerable.Range(0, 160).Select(i => (float)(Half)MathF.Sin(i))];
        using Tensor whole = context.FromValues<float>(q, shape);
        using Tensor half = context.FromValues<Half>([.. q.Select(x => (Half)x)], shape);
        using var wholeOut = new Tensor(context, shape);
        using var halfOut = new Tensor(context, shape, DType.Float16);
        var options = new AttentionOptions { Kind = AttentionKind.Full, SharedQk = true, KeyNorm = KeyNorm.Rms };
        using var workspace = new Workspace(context);
        new Attention { Options = options, Q = whole, V = whole, Out = wholeOut }.Forward(workspace);
        new Attention { Options = options, Q = half, V = half, Out = halfOut }.Forward(workspace);
        Assert.That(
            halfOut.ToArray<Half>(), Is.EqualTo(wholeOut.ToArray<float>().Select(x => (Half)x)));
        var mixed = new Attention { Options = options, Q = half, V = whole, Out = halfOut };
        Assert.That(
            () => mixed.Forward(workspace),
            Throws.ArgumentException.With.Message.Contains("v: expected F16 (the type of q) [B,T,H,D], got F32"));
    }

    [Test]
    public void PositionTables_OutsideTheirNumber_AreRefused()
    {
        using Tensor tensor = context.Zeros(new TensorShape(2, 3));
        var tables = new PositionTables(tensor.View);
        Assert.That(tables[0].Shape, Is.EqualTo(tensor.Shape));
        foreach (int index in new[] { -1, 1, PositionTables.MaxCount })
        {
            Assert.That(() => tables[index], Throws.TypeOf<ArgumentOutOfRangeException>());
        }
    }

    [Test]
    public void Workspace_AfterItsEnd_HasNoBytes()
    {
        var workspace = new Workspace(context);
        workspace.Reserve(100);
        Assert.That(workspace.Bytes, Is.GreaterThanOrEqualTo(100));
        workspace.Dispose();
        Assert.That(workspace.Bytes, Is.Zero);
    }

    [Test]
    public void Views_ShareMemory()
    {
        using Tensor tensor = context.FromValues<int>([.. Enumerable.Range(0, 24)], new TensorShape(4, 3, 2));
        Assert.That(tensor.Rows(1, 2).ToArray<int>(), Is.EqualTo(Enumerable.Range(6, 12)));
        Assert.That(tensor.Rows(4, 0).Shape, Is.EqualTo(new TensorShape(0, 3, 2)));
        Assert.That(tensor.Reshape(new TensorShape(24)).Rows(23, 1).ToArray<int>(), Is.EqualTo(new[] { 23 }));
        TensorView part = tensor.View.Part(5, new TensorShape(2, 2));
        Assert.That(part.ToArray<int>(), Is.EqualTo(new[] { 5, 6, 7, 8 }));
        part.CopyFrom<int>([50, 60, 70, 80]);
        Assert.That(tensor.AsSpan<int>()[5..9].ToArray(), Is.EqualTo(new[] { 50, 60, 70, 80 }));
        part.CopyFrom(tensor.View.Part(0, new TensorShape(4)));
        Assert.That(part.ToArray<int>(), Is.EqualTo(new[] { 0, 1, 2, 3 }));
        Assert.That(part.Pointer - tensor.View.Pointer, Is.EqualTo((nint)20));
    }

    [Test]
    public void Views_OutOfRange_Throw()
    {
        using var tensor = new Tensor(context, new TensorShape(4, 3));
        Assert.Throws<ArgumentOutOfRangeException>(() => tensor.Rows(3, 2));
        Assert.Throws<ArgumentOutOfRangeException>(() => tensor.Rows(-1, 1));
        Assert.Throws<ArgumentOutOfRangeException>(() => tensor.Rows(2, long.MaxValue));
        Assert.Throws<ArgumentOutOfRangeException>(() => tensor.View.Part(9, new TensorShape(2, 2)));
        Assert.Throws<ArgumentOutOfRangeException>(() => tensor.View.Part(-1, new TensorShape(1)));
        Assert.Throws<ArgumentException>(() => tensor.Reshape(new TensorShape(5)));
    }

    [Test]
    public void Access_WithTheWrongTypeOrLength_Throws()
    {
        using var tensor = new Tensor(context, new TensorShape(4));
        Assert.That(
            () => tensor.AsSpan<int>(),
            Throws.ArgumentException.With.Message.Contains("Float32 [4]").And.Message.Contains("Int32"));
        Assert.That(
            () => tensor.CopyFrom<float>(new float[3]),
            Throws.ArgumentException.With.Message.Contains("4").And.Message.Contains("3"));
        Assert.That(() => tensor.AsSpan<short>(), Throws.TypeOf<NotSupportedException>());
        using var other = new Tensor(context, new TensorShape(4), DType.Int32);
        Assert.That(() => tensor.View.CopyFrom(other), Throws.ArgumentException);
        Assert.That(() => TensorView.Absent.CopyFrom(tensor), Throws.ArgumentException);
    }

    [Test]
    public void MetaAndAbsent_HaveNoData()
    {
        TensorView meta = TensorView.Meta(new TensorShape(1L << 40, 8));
        Assert.That((meta.HasData, meta.IsAbsent, meta.ByteCount), Is.EqualTo((false, false, 1L << 45)));
        Assert.That(meta.Rows(1, 2).Shape, Is.EqualTo(new TensorShape(2, 8)));
        Assert.Throws<InvalidOperationException>(() => _ = meta.Pointer);
        TensorView absent = (Tensor?)null;
        Assert.That((absent.IsAbsent, absent.ByteCount, absent.ToString()), Is.EqualTo((true, 0L, "absent")));
    }

    [Test]
    public unsafe void Wrap_UsesForeignMemory()
    {
        float* memory = stackalloc float[6];
        using (Tensor tensor = Tensor.Wrap(context, (nint)memory, 24, new TensorShape(2, 3)))
        {
            tensor.CopyFrom<float>([1, 2, 3, 4, 5, 6]);
        }

        Assert.That(memory[5], Is.EqualTo(6));
        nint address = (nint)memory;
        Assert.Throws<ArgumentException>(() => Tensor.Wrap(context, address, 23, new TensorShape(2, 3)));
    }

    [Test]
    public void Allocation_IsAligned()
    {
        for (int length = 1; length < 100; length += 13)
        {
            using var tensor = new Tensor(context, new TensorShape(length), DType.UInt8);
            Assert.That(tensor.View.Pointer % 256, Is.EqualTo((nint)0));
        }

        using var empty = new Tensor(context, new TensorShape(0, 7));
        Assert.That(empty.ToArray<float>(), Is.Empty);
    }

    [Test]
    public void Shape_Sizes_AreChecked()
    {
        Assert.Throws<ArgumentOutOfRangeException>(() => _ = new TensorShape(-1));
        Assert.Throws<ArgumentOutOfRangeException>(() => _ = new TensorShape([1, 2, 3, 4, 5]));
        Assert.Throws<OverflowException>(() => _ = new TensorShape(long.MaxValue, 3));
        var shape = new TensorShape(2, 3, 4, 5);
        Assert.That(
            (shape[0], shape[^1], shape.ElementCount, shape.ToString()), Is.EqualTo((2L, 5L, 120L, "[2, 3, 4, 5]")));
        Assert.Throws<ArgumentOutOfRangeException>(() => _ = shape[4]);
        Assert.That(new TensorShape(6), Is.Not.EqualTo(new TensorShape(6, 1)));
        Assert.That(new TensorShape([]).ElementCount, Is.EqualTo(1));
    }

    [TestCase("cpu", DeviceType.Cpu, 0)]
    [TestCase("cuda", DeviceType.Cuda, 0)]
    [TestCase("cuda:3", DeviceType.Cuda, 3)]
    [TestCase("cuda-on-host", DeviceType.CudaOnHost, 0)]
    public void Device_Text_IsRead(string text, DeviceType type, int index)
    {
        Assert.That(Device.TryParse(text, out Device device));
        Assert.That(device, Is.EqualTo(new Device(type, index)));
        Assert.That(Device.TryParse(device.ToString(), out Device again));
        Assert.That(again, Is.EqualTo(device));
    }

    [TestCase("")]
    [TestCase("gpu")]
    [TestCase("cuda:")]
    [TestCase("cuda:-1")]
    [TestCase("cuda-on-host:1")]
    [TestCase(null)]
    public void Device_OtherText_IsRefused(string? text) => Assert.That(Device.TryParse(text, out _), Is.False);

    [Test]
    public void Precision_OfTheCpu_IsFloat32Alone()
    {
        Assert.That(context.Precision, Is.EqualTo(Precision.Float32));
        context.Precision = Precision.Float32;
        Assert.That(
            () => context.Precision = Precision.BFloat16,
            Throws.TypeOf<NotSupportedException>().With.Message.Contains("precision"));
        Assert.That(() => context.Precision = (Precision)9, Throws.ArgumentException.With.Message.Contains("got 9"));
        Assert.That(context.Precision, Is.EqualTo(Precision.Float32));
    }

    [Test]
    public void Memory_And_Build_AreReported()
    {
        MemoryInfo memory = context.MemoryInfo;
        Assert.That(memory.FreeBytes, Is.GreaterThan(0).And.LessThanOrEqualTo(memory.TotalBytes));
        using var build = System.Text.Json.JsonDocument.Parse(NativeRuntime.BuildInfo);
        Assert.That(build.RootElement.GetProperty("version").GetString(), Is.EqualTo(NativeRuntime.Version));
        using var device = System.Text.Json.JsonDocument.Parse(NativeRuntime.Describe(Device.Cpu));
        Assert.That(device.RootElement.GetProperty("name").GetString(), Is.Not.Empty);
        Assert.That(NativeRuntime.DeviceCount(DeviceType.Cpu, out _), Is.EqualTo(1));
    }

    [Test]
    public void Workspace_GrowsAndNeverShrinks()
    {
        using var workspace = new Workspace(context);
        workspace.Reserve(100);
        workspace.Reserve(10);
        Assert.That(workspace.Bytes, Is.EqualTo(100));
        workspace.Reserve(1000);
        Assert.That(workspace.Bytes, Is.EqualTo(1000));
        Assert.Throws<InsufficientMemoryException>(() => workspace.Reserve(1L << 55));
        Assert.That(workspace.Bytes, Is.Zero);
        workspace.Reserve(10);
        Assert.That(workspace.Bytes, Is.EqualTo(10));
    }

    [Test]
    public void Events_AreInOrder()
    {
        using var start = new DeviceEvent(context);
        using var stop = new DeviceEvent(context);
        start.Record();
        stop.Record();
        stop.Wait(context);
        Assert.That(DeviceEvent.ElapsedMilliseconds(start, stop), Is.GreaterThanOrEqualTo(0));
    }
}
