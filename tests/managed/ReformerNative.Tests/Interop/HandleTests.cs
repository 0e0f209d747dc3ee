using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Tests.Training;
using ReformerNative.Training;

namespace ReformerNative.Tests.Interop;

/// <summary>Native objects live exactly as long as they should, in whatever order their owners are let go.</summary>
[NonParallelizable]
public sealed class HandleTests
{
    private long before;

    [SetUp]
    public void Remember() => before = NativeRuntime.LiveObjects;

    [Test]
    public void Dispose_InOrder_LeavesNothing()
    {
        using (var context = new ReformerContext(threads: 1))
        using (var tensor = new Tensor(context, new TensorShape(3, 5)))
        using (var moment = new DeviceEvent(context))
        using (var workspace = new Workspace(context))
        {
            workspace.Reserve(100);
            Assert.That(NativeRuntime.LiveObjects - before, Is.EqualTo(5), "context, stream, buffer, event, workspace");
        }

        Assert.That(NativeRuntime.LiveObjects, Is.EqualTo(before));
    }

    [Test]
    public void Dispose_ContextFirst_KeepsTensorsUsableUntilTheirTurn()
    {
        var context = new ReformerContext(threads: 1);
        var tensor = new Tensor(context, new TensorShape(4));
        var moment = new DeviceEvent(context);
        context.Dispose();
        tensor.AsSpan<float>().Fill(2);
        Assert.That(tensor.AsSpan<float>()[3], Is.EqualTo(2));
        Assert.Throws<ObjectDisposedException>(tensor.Zero);
        moment.Dispose();
        tensor.Dispose();
        Assert.That(NativeRuntime.LiveObjects, Is.EqualTo(before));
    }

    [Test]
    public void Dispose_Twice_IsHarmless()
    {
        var context = new ReformerContext(threads: 1);
        Tensor tensor = context.Zeros(new TensorShape(4));
        var workspace = new Workspace(context);
        for (int i = 0; i < 2; i++)
        {
            workspace.Dispose();
            tensor.Dispose();
            context.Dispose();
        }

        Assert.That(NativeRuntime.LiveObjects, Is.EqualTo(before));
    }

    [Test]
    public void Dispose_OfWhatHoldsModels_FreesAllAtOnce()
    {
        var context = new ReformerContext(threads: 1);
        ReformerModel model = ReformerModel.Create(TrainerTests.Config, context, 3);
        var generator = new Generator(model);
        var cache = new TokenCache(model, default, 40);
        var trainer = new Trainer(model, new DuplicationTask(31), TrainerTests.Options with { Steps = 1 });
        foreach (CacheUse use in Enum.GetValues<CacheUse>())
        {
            var options = new GenerationOptions { Count = 2, Cache = use };
            Assert.That(generator.Generate([1, 2, 3], options).Count(), Is.EqualTo(2));
        }

        cache.NextTokenLogits([1, 2, 3]);
        trainer.Run();
        IDisposable[] owners = [trainer, cache, generator, model, context];
        foreach (IDisposable owner in owners)
        {
            owner.Dispose();
        }

        Assert.That(NativeRuntime.LiveObjects, Is.EqualTo(before));
        GC.KeepAlive(owners); // or finalizers would free what Dispose left
    }

    /// <summary>A model that sees many lengths makes the buffers of its passes anew for each.</summary>
    [Test]
    public void Dispose_OfAPassesMemory_ForgetsItsTensors()
    {
        const int Count = 5000;
        using var context = new ReformerContext(threads: 1);
        using var memory = new PassMemory(context);
        long start = GC.GetTotalMemory(forceFullCollection: true);
        for (int i = 0; i < Count; i++)
        {
            memory.Allocate("streams", new TensorShape(3), DType.Float32);
            memory.Dispose();
        }

        Assert.That(GC.GetTotalMemory(forceFullCollection: true) - start, Is.LessThan(20 * Count));
    }

    [Test]
    public void Use_AfterDispose_Throws()
    {
        using var context = new ReformerContext(threads: 1);
        Tensor tensor = context.Zeros(new TensorShape(4));
        TensorView view = tensor;
        tensor.Dispose();
        Assert.Throws<ObjectDisposedException>(() => _ = view.Pointer);
        Assert.Throws<ObjectDisposedException>(() => view.AsSpan<float>());
        Assert.Throws<ObjectDisposedException>(() => view.CopyTo<float>(new float[4]));
        var workspace = new Workspace(context);
        workspace.Dispose();
        Assert.Throws<ObjectDisposedException>(() => workspace.Reserve(1));
    }

    [Test]
    public void Finalization_OfEverythingAtOnce_LeavesNothing()
    {
        for (int i = 0; i < 20; i++)
        {
            Abandon();
        }

        GC.Collect();
        GC.WaitForPendingFinalizers();
        GC.Collect();
        GC.WaitForPendingFinalizers();
        Assert.That(NativeRuntime.LiveObjects, Is.EqualTo(before));
    }

    /// <summary>
    /// What is dropped is a small object to the collector unless it is told of the native memory behind it.
    /// </summary>
    [TestCase(true)]
    [TestCase(false)]
    public void Finalization_OfManyDropped_KeepsThePeakOfMemoryLow(bool models)
    {
        const int Count = 150;
        const long Megabyte = 1 << 20;
        using var context = new ReformerContext(threads: 1);
        long start = ResidentBytes();
        long peak = start;
        long bytes = 0;
        for (int i = 0; i < Count; i++)
        {
            bytes += models ? DropModel(context) : DropTensor(context);
            peak = Math.Max(peak, ResidentBytes());
        }

        TestContext.Out.WriteLine($"peak {(peak - start) / Megabyte} MiB of {bytes / Megabyte} MiB");
        Assert.That(bytes, Is.GreaterThan(8 * Count * Megabyte), "or the bound below is no bound");
        Assert.That(peak - start, Is.LessThan(bytes / 5));
        GC.Collect();
        GC.WaitForPendingFinalizers();
    }

    [Test]
    public void Use_AfterDispose_NamesWhatTheUserHolds()
    {
        var context = new ReformerContext(threads: 1);
        Tensor tensor = context.Zeros(new TensorShape(4));
        var moment = new DeviceEvent(context);
        var workspace = new Workspace(context);
        context.Dispose();
        TestDelegate[] uses =
        [
            context.Synchronize, tensor.Zero, moment.Record, () => _ = context.Precision, () => _ = context.MemoryInfo,
            () => context.Zeros(new TensorShape(4)), () => workspace.Reserve(1), () => _ = new DeviceEvent(context),
            () => context.Precision = Precision.Float32, () => tensor.CopyFrom<float>(new float[4]),
        ];
        foreach (TestDelegate use in uses)
        {
            Assert.That(
                Assert.Throws<ObjectDisposedException>(use)!.ObjectName, Is.EqualTo(typeof(ReformerContext).FullName));
        }

        tensor.Dispose();
        moment.Dispose();
        workspace.Dispose();
        using var other = new ReformerContext(threads: 1);
        tensor = other.Zeros(new TensorShape(4));
        tensor.Dispose();
        Assert.That(
            Assert.Throws<ObjectDisposedException>(tensor.Zero)!.ObjectName, Is.EqualTo(typeof(Tensor).FullName));
        Assert.That(
            Assert.Throws<ObjectDisposedException>(moment.Record)!.ObjectName,
            Is.EqualTo(typeof(DeviceEvent).FullName));
        Assert.That(
            Assert.Throws<ObjectDisposedException>(() => workspace.Reserve(1))!.ObjectName,
            Is.EqualTo(typeof(Workspace).FullName));
    }

    [Test]
    public void Context_ThatCannotBeMade_LeavesNothing()
    {
        Assert.That(() => new ReformerContext(Device.Cuda(99)), Throws.InstanceOf<Exception>());
        Assert.That(() => new ReformerContext(threads: -1), Throws.ArgumentException);
        GC.Collect();
        GC.WaitForPendingFinalizers();
        Assert.That(NativeRuntime.LiveObjects, Is.EqualTo(before));
    }

    [Test]
    public void Allocate_MoreThanThereIs_ThrowsInsufficientMemory()
    {
        using var context = new ReformerContext(threads: 1);
        var error = Assert.Throws<InsufficientMemoryException>(() => new Tensor(context, new TensorShape(1L << 50)));
        Assert.That(
            error!.Message, Does.Contain((4L << 50).ToString(System.Globalization.CultureInfo.InvariantCulture)));
    }

    /// <summary>Makes a model that nobody disposes; returns the bytes of its parameters.</summary>
    [System.Runtime.CompilerServices.MethodImpl(System.Runtime.CompilerServices.MethodImplOptions.NoInlining)]
    private static long DropModel(ReformerContext context)
    {
        ReformerConfig config = ReformerPresets.Text with
        {
            FeedForwardSize = 4096,
            AttnLayers = [AttentionKind.Local],
        };
        return ReformerModel.Create(config, context, 1).ParameterCount * sizeof(float);
    }

    [System.Runtime.CompilerServices.MethodImpl(System.Runtime.CompilerServices.MethodImplOptions.NoInlining)]
    private static long DropTensor(ReformerContext context) => context.Zeros(new TensorShape(3 << 20)).View.ByteCount;

    private static long ResidentBytes()
    {
        using var process = System.Diagnostics.Process.GetCurrentProcess();
        return process.WorkingSet64;
    }

    [System.Runtime.CompilerServices.MethodImpl(System.Runtime.CompilerServices.MethodImplOptions.NoInlining)]
    private static void Abandon()
    {
        var context = new ReformerContext(threads: 1);
        _ = new Tensor(context, new TensorShape(16));
        _ = new DeviceEvent(context);
        new Workspace(context).Reserve(64);
    }
}
