using System.Text;

namespace ReformerNative.BindingGenerator;

/// <summary>Writes the list of structs and fields that rfn_abi_describe walks through.</summary>
internal static class DescribeTableWriter
{
    private const string Preamble =
        "// Written by ReformerNative.BindingGenerator from native/include/reformer_native.h; do not edit.\n"
        + "// S(struct, F(field)...) for every public struct, in header order.\n\n";

    public static string Write(Header header)
    {
        var text = new StringBuilder(Preamble);
        foreach (Structure structure in header.Structures)
        {
            text.Append("S(").Append(structure.Name).Append(",\n");
            string fields = string.Join(' ', structure.Fields.Select(field => $"F({field.Name})"));
            text.Append(Writing.Wrap(fields + ")", "  ", "  "));
        }

        return text.ToString();
    }
}
