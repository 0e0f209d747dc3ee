using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Tensors;

namespace ReformerNative.Tests.Model;

/// <summary>What a model says to a program that uses it from two threads or after its disposal.</summary>
public sealed class ModelUseTests
{
    [Test]
    public void Model_UsedByTwoThreads_NamesItselfAndBothCalls()
    {
        using var context = new ReformerContext(threads: 1);
        using ReformerModel model = ReformerModel.Create(ModelTests.Small, context, 3);
        using var generator = new Generator(model);
        TokenBatch batch = ModelTests.RandomBatch(2, 200, 31, 7);
        using var directory = new TemporaryDirectory();
        LossResult expected = model.Evaluate(batch);
        (string Name, Action Run)[] calls =
        [
            ("Evaluate", () => model.Evaluate(batch)),
            ("ForwardBackward", () => model.ForwardBackward(batch, default)),
            ("Trace", () => model.Trace(batch)),
            ("NextTokenLogits", () => model.NextTokenLogits(batch, new float[62])),
            ("ZeroGradients", model.ZeroGradients),
            ("MeasureReconstruction", () => model.MeasureReconstruction()),
            ("ResolveBuckets", () => model.ResolveBuckets(200)),
            ("Save", () => model.Save(directory.Path)),
            ("Generate", () => _ = generator.Generate([1], new GenerationOptions { Count = 1 }).Count()),
            ("Dispose", model.Dispose),
        ];
        using (model.Enter("Training"))
        {
            Assert.Multiple(() =>
            {
                foreach ((string name, Action run) in calls)
                {
                    Assert.That(
                        () => Task.Run(run).GetAwaiter().GetResult(),
                        Throws.InvalidOperationException.With.Message.StartsWith(
                            $"ReformerModel: expected one call at a time, found {name} while Training is running"));
                }
            });
        }

        Assert.That(model.Evaluate(batch), Is.EqualTo(expected), "the refusals changed nothing");
    }

    /// <summary>Without arrangement: whatever the threads do to each other, results are right or refused.</summary>
    [Test]
    public void Model_UsedByManyThreadsAtOnce_GivesRightResultsOrRefuses()
    {
        using var context = new ReformerContext(threads: 1);
        using ReformerModel model = ReformerModel.Create(ModelTests.Small, context, 3);
        TokenBatch batch = ModelTests.RandomBatch(2, 60, 31, 7);
        LossResult expected = model.Evaluate(batch);
        int right = 0;
        int refused = 0;
        Parallel.For(0, 4, new ParallelOptions { MaxDegreeOfParallelism = 4 }, _ =>
        {
            for (int i = 0; i < 50; i++)
            {
                try
                {
                    Interlocked.Add(ref right, model.Evaluate(batch) == expected ? 1 : 0);
                }
                catch (InvalidOperationException error) when (error.Message.StartsWith(
                    "ReformerModel", StringComparison.Ordinal))
                {
                    Interlocked.Increment(ref refused);
                }
            }
        });
        Assert.That(right + refused, Is.EqualTo(200));
        Assert.That(right, Is.Positive);
    }

    [Test]
    public void FailedCall_LetsTheNextOneIn()
    {
        using var context = new ReformerContext(threads: 1);
        using ReformerModel model = ReformerModel.Create(ModelTests.Small, context, 3);
        TokenBatch bad = ModelTests.RandomBatch(1, 20, 31, 7);
        bad.Ids[3] = 99;
        Assert.That(() => model.Evaluate(bad), Throws.ArgumentException);
        Assert.That(model.Evaluate(ModelTests.RandomBatch(1, 20, 31, 7)).Count, Is.EqualTo(19));
    }

    [Test]
    public void DisposedModel_IsNamedByEveryCall()
    {
        using var context = new ReformerContext(threads: 1);
        ReformerModel model = ReformerModel.Create(ModelTests.Small, context, 3);
        TokenBatch batch = ModelTests.RandomBatch(1, 20, 31, 7);
        using var directory = new TemporaryDirectory();
        using var generator = new Generator(model);
        Parameter parameter = model.Parameters[0];
        model.Evaluate(batch);
        model.Dispose();
        Action[] calls =
        [
            () => model.Evaluate(batch),
            () => model.ForwardBackward(batch, default),
            () => model.Trace(batch),
            () => model.NextTokenLogits(batch, new float[31]),
            model.ZeroGradients,
            () => model.MeasureReconstruction(),
            () => model.ResolveBuckets(200),
            () => model.Save(directory.Path),
            () => _ = generator.Generate([1], new GenerationOptions { Count = 1 }).Count(),
            () => _ = parameter.Value,
            () => _ = parameter.Gradient,
            () => _ = new Generator(model),
        ];
        Assert.Multiple(() =>
        {
            foreach (Action call in calls)
            {
                Assert.That(
                    () => call(),
                    Throws.TypeOf<ObjectDisposedException>().With.Property("ObjectName").EqualTo(
                        typeof(ReformerModel).FullName));
            }
        });
        Assert.That(Directory.EnumerateFileSystemEntries(directory.Path), Is.Empty, "nothing was written");
        model.Dispose();
    }

    [Test]
    public void DisposedGenerator_IsNamed()
    {
        using var context = new ReformerContext(threads: 1);
        using ReformerModel model = ReformerModel.Create(ModelTests.Small, context, 3);
        var generator = new Generator(model);
        using IEnumerator<int> begun =
            generator.Generate([1], new GenerationOptions { Count = 2 }).GetEnumerator();
        Assert.That(begun.MoveNext(), Is.True);
        generator.Dispose();
        Assert.Multiple(() =>
        {
            foreach (Action call in (Action[])
                [() => generator.Generate([1], new GenerationOptions()), () => begun.MoveNext()])
            {
                Assert.That(
                    () => call(),
                    Throws.TypeOf<ObjectDisposedException>().With.Property("ObjectName").EqualTo(
                        typeof(Generator).FullName));
            }
        });
    }
}
