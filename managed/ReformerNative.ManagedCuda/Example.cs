using global::ManagedCuda;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.ManagedCuda;

/// <summary>The example of README.md.</summary>
internal static class Example
{
    /// <summary>Layer norm of 1024 rows, between an upload and a download of ManagedCuda on the same stream.</summary>
    public static float[] Normalize(float[] rows)
    {
        // README: begin
        using var primary = new PrimaryContext(0);
        primary.SetCurrent();
        using CudaDeviceVariable<float> x = new(1024 * 512), y = new(1024 * 512), weight = new(512), bias = new(512);
        using var stream = new CudaStream();
        using ReformerContext context = primary.OpenReformer(stream);
        using var workspace = new Workspace(context);

        x.CopyToDevice(rows);                                                         // 1024 rows of 512
        weight.Memset(0x3f800000);                                                    // 1.0f
        bias.Memset(0);
        var norm = new LayerNorm
        {
            Epsilon = 1e-6f,
            X = x.AsView(context, new TensorShape(1024, 512)),
            Weight = weight.AsView(context, new TensorShape(512)),
            Bias = bias.AsView(context, new TensorShape(512)),
            Y = y.AsView(context, new TensorShape(1024, 512)),
        };
        norm.Forward(workspace);                                                      // enqueued on the stream
        stream.Synchronize();
        float[] normalized = y;                                                       // ManagedCuda's download
        // README: end
        return normalized;
    }
}
