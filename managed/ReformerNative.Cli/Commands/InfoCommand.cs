using System.CommandLine;
using System.Runtime.InteropServices;
using System.Text.Json.Nodes;
using ReformerNative.Model;
using ReformerNative.Tensors;

namespace ReformerNative.Cli.Commands;

/// <summary><c>reformer info</c>.</summary>
internal static class InfoCommand
{
    private static readonly int[] RoundsShown = [1, 2, 4, 8];

    public static Command Create()
    {
        var command = new Command(
            "info", "Versions, devices, CPU features and BLAS, and the length from which LSH attention pays.")
        {
            CommonOptions.Json,
        };
        command.SetAction(Run);
        return command;
    }

    private static int Run(ParseResult parsed)
    {
        int gpus = NativeRuntime.DeviceCount(DeviceType.Cuda, out string reason);
        var devices = new JsonArray { Describe(Device.Cpu) };
        for (int i = 0; i < gpus; i++)
        {
            devices.Add((JsonNode)Describe(Device.Cuda(i)));
        }

        var info = new JsonObject
        {
            ["version"] = NativeRuntime.Version,
            ["runtime"] = RuntimeInformation.FrameworkDescription,
            ["system"] = RuntimeInformation.OSDescription,
            ["processors"] = Environment.ProcessorCount,
            ["native"] = JsonNode.Parse(NativeRuntime.BuildInfo),
            ["devices"] = devices,
            ["lsh_crossover_by_rounds"] = new JsonObject(
                RoundsShown.Select(rounds => new KeyValuePair<string, JsonNode?>(
                    Output.Text($"{rounds}"), AttentionCost.Crossover(ModelShape.Default(rounds))))
            ),
        };
        if (gpus == 0)
        {
            info["cuda"] = reason;
        }

        if (parsed.GetValue(CommonOptions.Json))
        {
            Output.Json(info);
        }
        else
        {
            Print(info, "");
        }

        return ExitCode.Done;
    }

    private static JsonObject Describe(Device device)
    {
        var item = new JsonObject { ["device"] = device.ToString() };
        foreach ((string key, JsonNode? value) in JsonNode.Parse(NativeRuntime.Describe(device))!.AsObject())
        {
            item[key] = value?.DeepClone();
        }

        return item;
    }

    private static void Print(JsonObject item, string indent)
    {
        foreach ((string key, JsonNode? value) in item)
        {
            switch (value)
            {
                case JsonObject inner:
                    Console.WriteLine($"{indent}{key}");
                    Print(inner, indent + "  ");
                    break;

                case JsonArray array when array.Any(entry => entry is JsonObject):
                    Console.WriteLine($"{indent}{key}");
                    foreach (JsonNode? entry in array)
                    {
                        Print(entry!.AsObject(), indent + "  ");
                    }

                    break;

                case JsonArray array:
                    Console.WriteLine(
                        $"{indent}{key,-16}{string.Join(", ", array.Select(entry => entry?.ToString()))}");
                    break;

                default:
                    Console.WriteLine($"{indent}{key,-16}{value}");
                    break;
            }
        }
    }
}
