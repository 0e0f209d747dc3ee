using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Tests.Cuda;

/// <summary>Tensors whose memory is a device's.</summary>
public sealed class CudaTensorTests
{
    private static readonly float[] Values = [.. Enumerable.Range(0, 24).Select(i => (i * 0.5f) - 3)];

    private ReformerContext _cpu = null!;
    private ReformerContext _cuda = null!;

    [OneTimeSetUp]
    public void Open()
    {
        _cuda = CudaOnHost.Open();
        _cpu = new ReformerContext(threads: 1);
    }

    [OneTimeTearDown]
    public void Close()
    {
        _cuda?.Dispose();
        _cpu?.Dispose();
    }

    [Test]
    public void Values_GoThereAndBack()
    {
        using Tensor tensor = _cuda.FromValues<float>(Values, new TensorShape(4, 6));
        Assert.That(tensor.ToArray<float>(), Is.EqualTo(Values));
        tensor.Rows(1, 2).Zero();
        float[] expected = [.. Values.Select((value, i) => i is >= 6 and < 18 ? 0 : value)];
        Assert.That(tensor.ToArray<float>(), Is.EqualTo(expected));
        Assert.That(tensor.View.Part(18, new TensorShape(3)).ToArray<float>(), Is.EqualTo(Values[18..21]));
    }

    /// <summary>The simulated device gives memory that is full of NaN.</summary>
    [Test]
    public void Zeros_AreZero()
    {
        using Tensor unset = new(_cuda, new TensorShape(5)), zeros = _cuda.Zeros(new TensorShape(5));
        Assert.That(unset.ToArray<float>(), Has.None.Zero);
        Assert.That(zeros.ToArray<float>(), Has.All.Zero);
    }

    [Test]
    public void DeviceMemory_AsSpan_IsRefused()
    {
        using Tensor tensor = _cuda.Zeros(new TensorShape(3));
        Assert.That(
            () => tensor.AsSpan<float>(), Throws.TypeOf<NotSupportedException>().With.Message.Contains("cuda-on-host"));
    }

    [Test]
    public void HostMemory_IsReadableAndNoArgumentOfAnOp()
    {
        using var host = new Tensor(_cuda, new TensorShape(4, 6), memory: MemoryKind.Host);
        host.Zero();
        Assert.That(host.AsSpan<float>().ToArray(), Has.All.Zero);
        host.CopyFrom<float>(Values);
        Assert.That(host.AsSpan<float>().ToArray(), Is.EqualTo(Values));
        Assert.That(host.ToArray<float>(), Is.EqualTo(Values));
        using Tensor row = _cuda.Zeros(new TensorShape(6));
        using var workspace = new Workspace(_cuda);
        Assert.That(
            () => new LayerNorm { Epsilon = 1, X = host, Weight = row, Bias = row, Y = host }.Forward(workspace),
            Throws.ArgumentException.With.Message.Contains("Host"));
    }

    /// <summary>Every pair of places, with work on the source that has not run when the copy is asked for.</summary>
    [Test]
    public void Copies_BetweenAllPlaces_AreInOrder([Range(0, 3)] int from, [Range(0, 3)] int to)
    {
        using Tensor source = Make(from);
        using Tensor destination = Make(to);
        source.CopyFrom<float>(Values);
        destination.Zero();
        if (source.Memory == MemoryKind.Device)
        {
            source.Rows(0, 1).Zero();
        }

        destination.View.CopyFrom(source.View);
        float[] expected = [.. Values.Select((value, i) => source.Memory == MemoryKind.Device && i < 6 ? 0 : value)];
        if (source.Context != destination.Context)
        {
            source.Context.Synchronize();
        }

        Assert.That(destination.ToArray<float>(), Is.EqualTo(expected));
        if (destination is { Context.Device.Type: DeviceType.Cpu })
        {
            Assert.That(destination.AsSpan<float>().ToArray(), Is.EqualTo(expected));
        }

        Tensor Make(int place) => place switch
        {
            0 => new Tensor(_cpu, new TensorShape(4, 6)),
            1 => new Tensor(_cpu, new TensorShape(4, 6), memory: MemoryKind.Host),
            2 => new Tensor(_cuda, new TensorShape(4, 6)),
            _ => new Tensor(_cuda, new TensorShape(4, 6), memory: MemoryKind.Host),
        };
    }

    [Test]
    public void TensorOfTheCpu_InAnOpOfTheGpu_IsRefused()
    {
        using Tensor x = _cpu.FromValues<float>(Values, new TensorShape(4, 6));
        using Tensor y = _cuda.Zeros(new TensorShape(4, 6));
        using Tensor row = _cuda.Zeros(new TensorShape(6));
        using var workspace = new Workspace(_cuda);
        Assert.That(
            () =>
                new LayerNorm
                {
                    Epsilon = 1,
                    X = x,
                    Weight = row,
                    Bias = row,
                    Y = y,
                }.Forward(workspace),
            Throws
                .ArgumentException.With.Message.Contains("belongs to cpu")
                .And.Message.Contains("runs on cuda-on-host")
        );
    }

    [Test]
    public void Events_MeasureAndLetAnotherContextWait()
    {
        using ReformerContext other = CudaOnHost.Open();
        using Tensor tensor = _cuda.FromValues<float>(Values, new TensorShape(24));
        using var copy = new Tensor(other, new TensorShape(24));
        using var start = new DeviceEvent(_cuda);
        using var stop = new DeviceEvent(_cuda);
        start.Record();
        tensor.Rows(0, 6).Zero();
        stop.Record();
        stop.Wait(other);
        copy.View.CopyFrom(tensor.View);
        Assert.That(copy.ToArray<float>(), Is.EqualTo((float[])[0, 0, 0, 0, 0, 0, .. Values[6..]]));
        Assert.That(DeviceEvent.ElapsedMilliseconds(start, stop), Is.GreaterThanOrEqualTo(0));
        using var elsewhere = new ReformerContext(threads: 1);
        Assert.That(() => stop.Wait(elsewhere), Throws.ArgumentException.With.Message.Contains("context"));
    }

    [Test]
    public void Memory_OfTheDevice_IsReported()
    {
        MemoryInfo before = _cuda.MemoryInfo;
        using var tensor = new Tensor(_cuda, new TensorShape(1 << 20));
        Assert.That(before.FreeBytes - _cuda.MemoryInfo.FreeBytes, Is.EqualTo(4L << 20));
        Assert.That(
            () => new Tensor(_cuda, new TensorShape(before.TotalBytes)),
            Throws.TypeOf<InsufficientMemoryException>().With.Message.Contains("free"));
    }

    [Test]
    public void Precision_IsKept([Values] Precision precision)
    {
        using ReformerContext context = CudaOnHost.Open(precision);
        Assert.That(context.Precision, Is.EqualTo(precision));
    }

    [Test]
    public void OtherDevice_IsRefusedWithASentence() =>
        Assert.That(
            () => new ReformerContext(new Device(DeviceType.CudaOnHost, 7)),
            Throws.ArgumentException.With.Message.Contains("got 7"));
}
